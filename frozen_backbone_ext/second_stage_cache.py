"""The second stage with the regions' features on disk: all that is left to compute is the classifier.

In that stage everything below the classifiers is frozen (spec 5), so for a picture that is shown
the same way each time its proposals and their features are always the same. They are kept per
picture, ground truth included; the draw of regions for a step stays random, and their labels are
taken anew. RPN and mask losses, which have no gradient there, are left out.

Shape suffixes: P proposals of a picture, R regions of a step, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.cascade import PaperCascadeROIHeads
from frozen_backbone_ext.modeling.subclassing import extend
from frozen_backbone_ext.modeling.tensor_folder import TensorFolder, Tensors
from frozen_backbone_ext.modeling.trunk import tensors_hash

KEY = "MODEL.CLASSIFIER_STAGE2.CACHE_FOLDER"
_TRAINED = ("cls_score", "balanced_loss")
# of cfg.MODEL: what changes no region's features
_FREE = ("WEIGHTS", "DEVICE", "CLASSIFIER_STAGE2", "BACKBONE_FREEZE")


@dataclass
class RegionCache:
    """What a model with a cache remembers.

    Args:
        folder: of the files.
        settings: of the model, as text.
        files: made at the first step, when the weights are there.
        hits, misses: pictures found and computed so far.
    """

    folder: str
    settings: str
    files: TensorFolder | None = None
    hits: int = 0
    misses: int = 0


class CachesRegions(nn.Module):
    """Mixin of a ``GeneralizedRCNN`` in the second stage; evaluation is as ever."""

    _regions: RegionCache

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """In training the losses of the box heads, from regions that are read or computed."""
        if not self.training:
            return super().forward(batched_inputs)
        own: Any = self
        targets = [item["instances"].to(own.device) for item in batched_inputs]
        regions = [
            self._of_picture(item, target)
            for item, target in zip(batched_inputs, targets, strict=True)
        ]
        return region_losses(own.roi_heads, regions, targets)

    def _of_picture(self, item: dict[str, Any], target: Instances) -> Tensors:
        state, own = self._regions, self
        model: Any = own
        if state.files is None:
            state.files = TensorFolder(state.folder, _identity(model, state.settings))
        path = state.files.path(item["image"], target.gt_boxes.tensor)
        found = state.files.read(path, model.device)
        if found is not None:
            state.hits += 1
            return found
        state.misses += 1
        found = compute_regions(model, item, target)
        state.files.write(path, found)
        return found


def cache_regions(model: nn.Module, cfg: CfgNode) -> None:
    """Give a model of the second stage its cache.

    Args:
        model: changed in place.
        cfg: its configuration.

    Raises:
        ConfigError: a kind of model whose regions this does not know.
    """
    heads: Any = getattr(model, "roi_heads", None)
    known = (StandardROIHeads, CascadeROIHeads, PaperCascadeROIHeads)
    if not isinstance(model, GeneralizedRCNN) or type(heads) not in known:
        raise ConfigError(
            f"{type(model).__name__} with {type(heads).__name__}",
            where=KEY,
            fix="it works for GeneralizedRCNN with StandardROIHeads or a cascade; leave it empty",
        )
    if getattr(heads, "train_on_pred_boxes", False):
        raise ConfigError("boxes of the heads become proposals", where=KEY, fix="leave it empty")
    options = cfg.MODEL.clone()
    options.defrost()
    for name in _FREE:
        del options[name]
    model.__dict__["_regions"] = RegionCache(cfg.MODEL.CLASSIFIER_STAGE2.CACHE_FOLDER, str(options))
    extend(model, CachesRegions)
    model.register_load_state_dict_post_hook(_forget)


@torch.no_grad()
def compute_regions(model: Any, item: dict[str, Any], target: Instances) -> Tensors:
    """All proposals of one picture, ground truth among them, with features of every stage.

    Args:
        model: a ``GeneralizedRCNN`` in training mode whose statistics are frozen.
        item: the picture, as the model takes it; it is not padded to the size of others.
        target: its objects.

    Returns:
        For every stage ``features{k}`` [P, D], ``boxes{k}`` [P, 4] and, after the first,
        ``kept{k}`` bool [P]: boxes that have an area, as detectron2 keeps them.
    """
    heads = model.roi_heads
    images = model.preprocess_image([item])
    devices = [images.tensor.device] if images.tensor.is_cuda else []
    with torch.random.fork_rng(devices):  # so that a hit and a miss draw the same regions
        maps = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, maps, [target])
    if heads.proposal_append_gt:
        proposals = add_ground_truth_to_proposals([target], proposals)
    pyramid = [maps[name] for name in heads.box_in_features]
    (given,) = proposals
    boxes, kept_P = given.proposal_boxes, torch.ones(len(given), dtype=torch.bool)
    found: Tensors = {}
    for stage, (head, predictor) in enumerate(_stages(heads)):
        features_PD = head(heads.box_pooler(pyramid, [boxes]))
        found |= {f"features{stage}": features_PD, f"boxes{stage}": boxes.tensor}
        if stage:
            found[f"kept{stage}"] = kept_P
        here = Instances(given.image_size, proposal_boxes=boxes)
        boxes_P4 = predictor.predict_boxes(predictor(features_PD), [here])[0]
        if isinstance(heads, CascadeROIHeads):
            boxes = Boxes(boxes_P4.detach().clone())
            boxes.clip(given.image_size)
            kept_P = kept_P.to(boxes.device) & boxes.nonempty()
    return found


def region_losses(
    heads: Any, regions: Sequence[Tensors], targets: Sequence[Instances]
) -> dict[str, Tensor]:
    """The box heads' losses of a step, by detectron2's names.

    Args:
        heads: of detectron2's kind; they draw the regions.
        regions: of :func:`compute_regions`, per picture.
        targets: its objects.
    """
    proposals = [_proposals(own, target) for own, target in zip(regions, targets, strict=True)]
    appended, heads.proposal_append_gt = heads.proposal_append_gt, False  # they are among them
    try:
        proposals = heads.label_and_sample_proposals(proposals, targets)
    finally:
        heads.proposal_append_gt = appended
    cascade = isinstance(heads, CascadeROIHeads)
    losses: dict[str, Tensor] = {}
    for stage, (_, predictor) in enumerate(_stages(heads)):
        if stage:
            pairs = zip(proposals, regions, strict=True)
            proposals = [_next_stage(one, own, stage) for one, own in pairs]
            proposals = heads._match_and_label_boxes(proposals, stage, targets)
        pairs = zip(proposals, regions, strict=True)
        features_RD = torch.cat([own[f"features{stage}"][one.place] for one, own in pairs])
        predictions = predictor(features_RD)
        if not cascade:
            return dict(predictor.losses(predictions, proposals))
        with get_event_storage().name_scope(f"stage{stage}"):
            found = predictor.losses(predictions, proposals)
        losses |= {f"{name}_stage{stage}": loss for name, loss in found.items()}
    if getattr(heads, "average_losses", False):
        return {name: loss / heads.num_cascade_stages for name, loss in losses.items()}
    return losses


def _stages(heads: Any) -> list[tuple[Any, Any]]:
    """Head and predictor of every stage."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True))
    return [(heads.box_head, heads.box_predictor)]


def _proposals(regions: Tensors, target: Instances) -> Instances:
    boxes_P4 = regions["boxes0"]
    place_P = torch.arange(len(boxes_P4), device=boxes_P4.device)
    return Instances(target.image_size, proposal_boxes=Boxes(boxes_P4), place=place_P)


def _next_stage(one: Instances, regions: Tensors, stage: int) -> Instances:
    place_R = one.place[regions[f"kept{stage}"][one.place]]
    boxes = Boxes(regions[f"boxes{stage}"][place_R])
    return Instances(one.image_size, proposal_boxes=boxes, place=place_R)


def _identity(model: nn.Module, settings: str) -> str:
    frozen = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(part in name.split(".") for part in _TRAINED)
    }
    device = next(model.parameters()).device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "float32"
    return f"{tensors_hash(frozen)} {kind} {settings}"


def _forget(module: nn.Module, incompatible: object) -> None:
    """Other weights have other regions."""
    assert isinstance(module, CachesRegions)
    module._regions.files = None
