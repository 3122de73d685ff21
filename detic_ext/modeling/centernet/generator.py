"""CenterNet as detectron2 proposal generator (specification section 1.2).

Shapes: N images; M cells of a batch in the order level, image, row, column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from detic_ext.losses.centernet import heatmap_focal_loss, location_loss
from detic_ext.modeling.centernet.decode import decode
from detic_ext.modeling.centernet.grid import flatten_maps
from detic_ext.modeling.centernet.head import CenterNetHead, HeadOptions
from detic_ext.modeling.centernet.more_positives import more_positive_cells
from detic_ext.modeling.centernet.options import (
    DecodeOptions,
    LossOptions,
    TargetOptions,
    options_from_config,
)
from detic_ext.modeling.centernet.targets import CenterNetTargets, make_targets
from detic_ext.modeling.weak_proposals import zero_through
from ext_common.distributed import mean_over_processes


@PROPOSAL_GENERATOR_REGISTRY.register()
class CenterNet(nn.Module):
    """Heatmap detector whose boxes are proposals.

    Args:
        in_features: names of the pyramid levels.
        head: see :class:`~detic_ext.modeling.centernet.head.CenterNetHead`.
        targets: how boxes become targets.
        losses: weights.
        decode_options: thresholds.
        clamp_boxes: move box centres into the picture before targets are made.
        as_proposals: give proposals; False = detections with the class scores (stand-alone).
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: CenterNetHead,
        targets: TargetOptions | None = None,
        losses: LossOptions | None = None,
        decode_options: DecodeOptions | None = None,
        clamp_boxes: bool = False,
        as_proposals: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = list(in_features)
        self.centernet_head = head
        self.target_options = targets or TargetOptions()
        self.loss_options = losses or LossOptions()
        self.decode_options = decode_options or DecodeOptions()
        self.clamp_boxes = clamp_boxes
        self.as_proposals = as_proposals

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        node = cfg.MODEL.CENTERNET
        targets, losses, decode_options = options_from_config(cfg)
        channels = input_shape[node.IN_FEATURES[0]].channels
        return {
            "in_features": node.IN_FEATURES,
            "head": CenterNetHead(channels, len(node.IN_FEATURES), HeadOptions.from_config(cfg)),
            "targets": targets,
            "losses": losses,
            "decode_options": decode_options,
            "clamp_boxes": cfg.INPUT.NOT_CLAMP_BOX,
            "as_proposals": node.ONLY_PROPOSAL or node.AS_PROPOSAL,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals, and losses in training.

        Args:
            images: sizes are read from it.
            features: maps by name.
            gt_instances: per image ``gt_boxes`` and ``gt_classes``; training only.

        Returns:
            per image ``proposal_boxes`` and ``objectness_logits`` (a probability), at test also
            ``scores`` and ``pred_classes``; and the losses by name.
        """
        boxes, agnostic, classes = self.centernet_head([features[n] for n in self.in_features])
        losses: dict[str, Tensor] = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("CenterNet needs ground truth in training")
            losses = self._losses(boxes, agnostic, classes, gt_instances)
        return self._decode(boxes, agnostic, classes, images.image_sizes), losses

    def propose_without_targets(
        self, images: ImageList, features: dict[str, Tensor]
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of images without boxes, and a zero for every loss."""
        boxes, agnostic, classes = self.centernet_head([features[n] for n in self.in_features])
        zero = _zero_if_finite(boxes) + zero_through([self])
        names = ["loss_centernet_loc"]
        if agnostic is not None:
            names += ["loss_centernet_agn_pos", "loss_centernet_agn_neg"]
        if classes is not None:
            names += ["loss_centernet_pos", "loss_centernet_neg"]
        proposals = self._decode(boxes, agnostic, classes, images.image_sizes)
        return proposals, dict.fromkeys(names, zero)

    def make_targets(
        self, gt_instances: Sequence[Instances], shapes: Sequence[tuple[int, int]]
    ) -> CenterNetTargets:
        """Targets for levels of these (rows, columns)."""
        boxes = [self._target_boxes(found) for found in gt_instances]
        classes = [found.gt_classes for found in gt_instances]
        channels = self.centernet_head.options.num_classes or None
        return make_targets(boxes, classes, shapes, self.target_options, channels)

    def _target_boxes(self, found: Instances) -> Tensor:
        boxes_B4: Tensor = found.gt_boxes.tensor
        if not self.clamp_boxes or len(boxes_B4) == 0:
            return boxes_B4
        height, width = found.image_size
        centres_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2
        limit = boxes_B4.new_tensor([width - 1, height - 1])
        shift_B2 = torch.minimum(centres_B2.clamp(min=0), limit) - centres_B2
        return boxes_B4 + shift_B2.repeat(1, 2)

    def _losses(
        self,
        boxes: list[Tensor],
        agnostic: list[Tensor] | None,
        classes: list[Tensor] | None,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        options = self.loss_options
        shapes = [(level.shape[2], level.shape[3]) for level in boxes]
        targets = self.make_targets(gt_instances, shapes)
        predicted_M4 = flatten_maps(boxes).float()
        positives_P, labels_P = targets.positives_P, targets.labels_P
        if self.target_options.more_positives:
            positives_P, labels_P = more_positive_cells(
                [found.gt_boxes.tensor for found in gt_instances],
                [found.gt_classes for found in gt_instances],
                shapes,
                predicted_M4,
                lambda p, w: location_loss(p, w, options.location),
                self.target_options,
            )
        count = predicted_M4.new_tensor(float(len(positives_P)))
        if options.reduce:
            count = mean_over_processes(count)
        count = count.clamp(min=1)
        losses: dict[str, Tensor] = {}
        peak_M1 = targets.heatmap_MK.amax(dim=1, keepdim=True)
        if classes is not None:
            pos, neg = self._focal(flatten_maps(classes), targets.heatmap_MK, positives_P, labels_P)
            losses["loss_centernet_pos"] = pos / count
            losses["loss_centernet_neg"] = neg / count
        if agnostic is not None:
            first_P = torch.zeros_like(positives_P)
            pos, neg = self._focal(flatten_maps(agnostic), peak_M1, positives_P, first_P)
            losses["loss_centernet_agn_pos"] = pos / count
            losses["loss_centernet_agn_neg"] = neg / count
        losses["loss_centernet_loc"] = self._location_loss(
            predicted_M4, targets.distances_M4, peak_M1[:, 0]
        )
        losses["loss_centernet_loc"] = losses["loss_centernet_loc"] + _zero_if_finite(boxes)
        return losses

    def _focal(
        self, logits_MK: Tensor, heatmap_MK: Tensor, positives_P: Tensor, channels_P: Tensor
    ) -> tuple[Tensor, Tensor]:
        options = self.loss_options
        positive, negative = heatmap_focal_loss(
            logits_MK.float(),
            heatmap_MK,
            positives_P,
            channels_P,
            alpha=options.alpha,
            beta=options.beta,
            gamma=options.gamma,
            clamp=options.clamp,
            ignore_high_fp=options.ignore_high_fp,
        )
        return positive * options.pos_weight, negative * options.neg_weight

    def _location_loss(self, predicted_M4: Tensor, wanted_M4: Tensor, peak_M: Tensor) -> Tensor:
        options = self.loss_options
        # a mask instead of an index: the number of cells stays on the device
        used_M = wanted_M4.amax(dim=1) >= 0
        weight_M = (peak_M if options.weigh_location else torch.ones_like(peak_M)) * used_M
        total = weight_M.sum()
        if options.reduce:
            total = mean_over_processes(total)
        safe_M4 = torch.where(used_M[:, None], wanted_M4, 1.0)
        pred_M4 = torch.where(used_M[:, None], predicted_M4, 1.0)
        loss_M = location_loss(pred_M4, safe_M4, options.location)
        return (loss_M * weight_M).sum() / total.clamp(min=1) * options.reg_weight

    def _decode(
        self,
        boxes: list[Tensor],
        agnostic: list[Tensor] | None,
        classes: list[Tensor] | None,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        scored = agnostic if classes is None else classes
        if scored is None:
            raise ValueError("CenterNet needs a heatmap: WITH_AGN_HM or not ONLY_PROPOSAL")
        factors = agnostic if classes is not None else None
        found = decode(
            [level.detach().float() for level in boxes],
            [level.detach().float().sigmoid() for level in scored],
            None if factors is None else [level.detach().float().sigmoid() for level in factors],
            self.target_options.strides,
            image_sizes,
            self.decode_options,
            training=self.training,
        )
        if not self.as_proposals:
            return found
        proposals = []
        for instances in found:
            proposal = Instances(instances.image_size)
            proposal.proposal_boxes = instances.pred_boxes
            proposal.objectness_logits = instances.scores
            if not self.training:
                proposal.scores = instances.scores
                proposal.pred_classes = instances.pred_classes
            proposals.append(proposal)
        return proposals


def _zero_if_finite(boxes: Sequence[Tensor]) -> Tensor:
    """0, or NaN if any predicted distance is not finite, wherever it is.

    Such boxes are not proposed. A loss that is not finite ends the step on every process, and the
    host need not look at each map to say so.
    """
    return torch.stack([level.detach().float().sum() for level in boxes]).sum() * 0.0
