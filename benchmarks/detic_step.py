"""Detic's R50 model, batches for it, and the plain computation that our fast paths replace.

The weights are random, but scores are spread as a trained model's are (``nms`` case): the number of
candidates that inference has to deal with depends on that.

Shapes: C classes, D embedding width, K = C + 1 columns, R regions; boxes XYXY in pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

import detic_ext  # noqa: F401 - registers the model parts
from benchmarks.case import Results
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.modeling import meta_arch, mixed_roi_heads
from detic_ext.modeling.box_inference import InferenceOptions
from detic_ext.modeling.predictor import DeticPredictor
from detic_ext.modeling.weak_proposals import propose_without_targets
from ext_common.config import load_config
from ext_common.vocabulary import Vocabulary

CONFIG = (
    Path(__file__).resolve().parent.parent
    / "configs/detic/Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size.yaml"
)
KINDS = ("box", "image", "inference")
OBJECTS = 8  # per box-annotated picture
WIDTH = 512  # D
# share of every embedding that points away from every region, which keeps most scores low
_AWAY = 0.47

SMALL = (
    *("MODEL.TIMM.BASE_NAME", "resnet18", "MODEL.FPN.OUT_CHANNELS", "64"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "24"),
    *("MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", "40", "MODEL.CENTERNET.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.CENTERNET.NUM_BOX_CONVS", "1", "MODEL.ROI_BOX_HEAD.WS_NUM_PROPS", "8"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    # its few candidates all score low
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1e-4", "TEST.DETECTIONS_PER_IMAGE", "5"),
)
"""Config pairs of a model that tests can run."""


@dataclass(frozen=True)
class StepModel:
    """The model with its batches.

    Attributes:
        model: random weights, calibrated scores.
        batches: by kind, see :data:`KINDS`.
    """

    model: nn.Module
    batches: dict[str, list[dict[str, Any]]]

    def run(self, kind: str) -> Results:
        """A training step without the optimizer, or inference."""
        torch.manual_seed(0)  # every way draws the same regions and classes
        if kind == "inference":
            self.model.eval()
            with torch.no_grad():
                return _detections(self.model(self.batches[kind]))
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        with EventStorage(1):
            losses = self.model(self.batches[kind])
        self.backward(losses)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        return {name: loss.detach() for name, loss in losses.items()} | {"grad": norm}

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Gradients of all parameters."""
        torch.stack([loss.float().sum() for loss in losses.values()]).sum().backward()

    def run_plain(self, kind: str) -> Results:
        """:meth:`run` without our fast paths."""
        with plain_computation(self.model):
            return self.run(kind)


def build_step(
    device: torch.device,
    *,
    num_classes: int,
    opts: Sequence[str] = (),
    size: int = 640,
    images: int = 1,
) -> StepModel:
    """The model of the R50 configuration.

    Args:
        device: where.
        num_classes: C; the embeddings are random.
        opts: config pairs on top.
        size: side of box-annotated pictures; those with image labels have half of it.
        images: box-annotated pictures of a batch, and pictures of inference; a batch of image
            labels has four times as many, as published.
    """
    generator = torch.Generator().manual_seed(0)
    away_D = F.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.npz"
        own_CD = F.normalize(torch.randn(num_classes, WIDTH, generator=generator), dim=1)
        embeddings_CD = (1 - _AWAY**2) ** 0.5 * own_CD - _AWAY * away_D
        names = [f"class {index}" for index in range(num_classes)]
        Vocabulary.from_embeddings(names, embeddings_CD, "random").save(path)
        settings = ("MODEL.VOCABULARY", str(path), "MODEL.WEIGHTS", "", "FP16", "False")
        cfg = load_config(str(CONFIG), [*settings, "MODEL.DEVICE", device.type, *opts])
        torch.manual_seed(0)
        model = build_model(cfg)
    for predictor in predictors(model):
        if predictor.freq_weight is not None:
            frequencies_C = torch.rand(num_classes, generator=generator) + 0.1
            predictor.freq_weight.copy_(frequencies_C)
    picture = partial(_picture, num_classes=num_classes, generator=generator)
    batches = {
        "box": [picture("box", size) for _ in range(images)],
        "image": [picture("image", size // 2) for _ in range(4 * images)],
        "inference": [picture("box", size) for _ in range(images)],
    }
    step = StepModel(model, batches)
    _calibrate(step, away_D.to(device))
    return step


def predictors(model: nn.Module) -> list[DeticPredictor]:
    """Those of the cascade's stages."""
    return cast("list[DeticPredictor]", cast("Any", model).roi_heads.predictors)


@contextmanager
def plain_computation(model: nn.Module) -> Iterator[None]:
    """All logits, detectron2's own NMS, and targets for batches that do not need them."""
    with ExitStack() as stack:
        for predictor in predictors(model):
            fast = predictor.classify_with
            stack.enter_context(
                patch.object(predictor, "classify_with", partial(_all_logits, fast))
            )
        stack.enter_context(patch.object(mixed_roi_heads, "detect", _plain_detect))
        stack.enter_context(patch.object(meta_arch, "propose_without_targets", _propose_plainly))
        yield


def _all_logits(fast: Any, features_RF: Tensor, subset: ClassSubset | None = None) -> KnownLogits:
    return KnownLogits(fast(features_RF, subset)())


def _plain_detect(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    options: InferenceOptions,
) -> list[Instances]:
    found: list[Instances] = fast_rcnn_inference(
        [boxes_R4.clone() for boxes_R4 in boxes],  # it clips in place
        list(scores),
        list(image_sizes),
        options.score_threshold,
        options.nms_threshold,
        options.max_detections,
    )[0]
    return found


class _OnlyForward(nn.Module):
    """Hides what a proposal generator can do without targets."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *arguments: Any) -> Any:
        return self.generator(*arguments)


def _propose_plainly(generator: nn.Module, images: Any, features: dict[str, Tensor]) -> Any:
    return propose_without_targets(_OnlyForward(generator), images, features)


def _calibrate(step: StepModel, away_D: Tensor) -> None:
    """Turn all regions towards ``away_D`` as far as the embeddings turn from it."""
    seen: list[Tensor] = []

    def measure(module: nn.Module, inputs: Any, output_RD: Tensor) -> None:
        share = _AWAY / (1 - _AWAY**2) ** 0.5
        seen.append(output_RD.norm(dim=1).mean() * share)

    linears = [cast("Any", predictor.cls_score).linear for predictor in predictors(step.model)]
    hooks = [linear.register_forward_hook(measure) for linear in linears]
    step.run("inference")
    with torch.no_grad():
        for linear, hook, length in zip(linears, hooks, seen, strict=True):
            hook.remove()
            linear.bias += length * away_D


def _picture(
    kind: str, size: int, *, num_classes: int, generator: torch.Generator
) -> dict[str, Any]:
    labels = torch.randint(num_classes, (OBJECTS,), generator=generator)
    item: dict[str, Any] = {
        "image": torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator),
        "ann_type": kind,
        "pos_category_ids": labels[:1].tolist() if kind == "image" else [],
        "dataset_source": int(kind == "image"),
        "height": size,
        "width": size,
    }
    if kind == "box":
        corner = torch.rand(OBJECTS, 2, generator=generator) * size * 0.6
        side = (torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.08) * size
        boxes_R4 = torch.cat([corner, corner + side], dim=1)
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes_R4)
        instances.gt_classes = labels
        masks_RHW = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
        for mask_HW, (x1, y1, x2, y2) in zip(masks_RHW, boxes_R4.int().tolist(), strict=True):
            mask_HW[y1:y2, x1:x2] = True
        instances.gt_masks = BitMasks(masks_RHW)
        item["instances"] = instances
    return item


def _detections(outputs: list[dict[str, Instances]]) -> Results:
    found = [output["instances"] for output in outputs]
    results = {
        "boxes": torch.cat([one.pred_boxes.tensor for one in found]),
        "scores": torch.cat([one.scores for one in found]),
        "classes": torch.cat([one.pred_classes for one in found]),
    }
    if found[0].has("pred_masks"):
        results["mask_areas"] = torch.cat([one.pred_masks.flatten(1).sum(1) for one in found])
    return results
