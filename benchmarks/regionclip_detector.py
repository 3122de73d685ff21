"""A zero-shot detector with random weights, a picture for it, and the plain computation.

Shapes: R regions, C classes, D joint embedding, K = C + 1 columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

import regionclip_ext  # noqa: F401 - registers the model parts
from benchmarks.case import Results
from benchmarks.plain_soft_nms import plain_soft_nms
from benchmarks.region_boxes import boxes_around_places
from benchmarks.regionclip_pretraining import all_queries
from ext_common.config import load_config
from ext_common.modeling.build import build_model
from regionclip_ext.losses.similarity import cosine_logits
from regionclip_ext.modeling import predictor
from regionclip_ext.modeling.clip_resnet import Bottleneck
from regionclip_ext.modeling.detections import DetectionOptions
from regionclip_ext.modeling.regions.source import as_regions
from regionclip_ext.modeling.score_fusion import fuse_objectness

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "regionclip"
CONFIG = CONFIGS / "zeroshot_lvis_RN50_rpn.yaml"
STAGES = ("proposals", "backbone", "RoIAlign", "layer4", "attention pool", "classifier", "scores",
          "soft-NMS")  # fmt: skip
PLACES = 25
"""Regions gather around so many."""

CANDIDATES = 10
"""Classes of a region above the threshold, on average: as sure as a trained model is. The plain
soft-NMS takes the square of their number."""

SMALL = (
    *("MODEL.CLIP.IMAGE_ENCODER", "custom", "MODEL.CLIP.TEXT_EMB_DIM", "16"),
    *("MODEL.CLIP.CUSTOM_ENCODER.WIDTH", "4", "MODEL.CLIP.CUSTOM_ENCODER.LAYERS", "[1,1,1,1]"),
    *("MODEL.CLIP.CUSTOM_ENCODER.HEADS", "2", "MODEL.CLIP.CUSTOM_ENCODER.EMBED_DIM", "16"),
    *("MODEL.CLIP.CUSTOM_ENCODER.RESOLUTION", "64", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "4"),
    *("TEST.DETECTIONS_PER_IMAGE", "50"),
)
"""Config pairs of an image encoder that tests can run; the RPN keeps its size."""


class ZeroShotDetector:
    """The published zero-shot configuration on one picture, with soft-NMS.

    Args:
        device: where.
        image: (height, width).
        regions: R; published are 1,000.
        opts: further config pairs.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        image: tuple[int, int] = (800, 1088),
        regions: int = 1000,
        opts: Sequence[str] = (),
    ) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(prefix="regionclip-detector-") as folder:
            cfg = load_config(CONFIG, [*_options(device, Path(folder)), *opts])
            path = Path(cfg.MODEL.CLIP.TEXT_EMB_PATH)
            torch.save(torch.randn(2, cfg.MODEL.CLIP.TEXT_EMB_DIM), path)
            self.model: Any = build_model(cfg).eval()
        _keep_contrast(self.model.backbone)
        patches = 255 * torch.rand(1, 3, 6, 8)
        picture = F.interpolate(patches, image, mode="bilinear")[0].to(torch.uint8)
        self.batch = [{"image": picture.to(device), "height": image[0], "width": image[1]}]
        self.regions = _regions(image, regions).to(device)
        self.model.propose = self._propose
        self.classes_CD = torch.zeros(0, 0)
        self.candidates = 0
        self.seen_RD = self._centre_embeddings()

    def ours(self) -> Results:
        """Scores of the detections; boxes of nearly equal scores may change places."""
        with torch.no_grad():
            found = self.model(self.batch, classifier=self.classes_CD)[0]["instances"]
        return {"scores": found.scores}

    def naive(self) -> Results:
        """Attention with all places as queries, one loop of soft-NMS over all candidates."""
        with self.plain():
            return self.ours()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Replace what we compute in another way than the specification."""
        pool = self.model.backbone.attnpool
        with ExitStack() as stack:
            stack.enter_context(patch.object(pool, "forward", partial(all_queries, pool)))
            stack.enter_context(patch.object(predictor, "detect", plain_detect))
            yield

    def places(self) -> list[tuple[str, Any, str]]:
        """What each of :data:`STAGES` is."""
        model = self.model
        heads = model.roi_heads
        return [
            ("proposals", model, "propose"),
            ("backbone", model.backbone, "forward"),
            ("RoIAlign", heads.pooler, "forward"),
            ("layer4", model.backbone, "last_stage"),
            ("attention pool", model.backbone.attnpool, "forward"),
            ("classifier", heads.box_predictor, "forward"),
            ("scores", heads.box_predictor, "inference"),
            ("soft-NMS", predictor, "detect"),
        ]

    def _propose(self, batch: Sequence[dict[str, Any]]) -> list[Instances]:
        """Run the RPN for its time; with random weights it finds little."""
        type(self.model).propose(self.model, batch)
        return [self.regions]

    def know(self, classes: int) -> None:
        """Take random classes, and a temperature with which few of a region pass the threshold.

        Args:
            classes: C.
        """
        scorer = self.model.roi_heads.box_predictor
        self.classes_CD = F.normalize(torch.randn(classes, self.seen_RD.shape[1]), dim=1)
        self.classes_CD = self.classes_CD.to(self.seen_RD.device)
        low, high = 1e-4, 1.0
        for _ in range(20):
            middle = (low * high) ** 0.5
            logits_RC = cosine_logits(self.seen_RD, self.classes_CD, middle)
            scores_RK = fuse_objectness(
                F.pad(logits_RC, (0, 1)).softmax(dim=1), self.regions.objectness_logits
            )
            wanted = scores_RK[:, :-1] > scorer.options.detections.score_threshold
            self.candidates = int(wanted.sum())
            few = self.candidates <= CANDIDATES * len(self.seen_RD)
            low, high = (middle, high) if few else (low, middle)
        scorer.options = replace(scorer.options, temperature=middle)

    def _centre_embeddings(self) -> Tensor:
        """Region embeddings [R, D], without what all have in common.

        The bias behind the attention pool takes it away, so that the regions differ as much as a
        trained model's.
        """
        with torch.no_grad():
            _, (seen_RD,) = self.model.region_embeddings(self.batch)
            self.model.backbone.attnpool.c_proj.bias -= seen_RD.mean(dim=0)
            centred_RD: Tensor = seen_RD - seen_RD.mean(dim=0)
        return centred_RD


def _regions(image: tuple[int, int], count: int) -> Instances:
    """Regions around some places, with positive objectness: others are dropped (pitfall 11.4)."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(PLACES, (count,), generator=generator)
    boxes = Boxes(boxes_around_places(places, image, generator))
    boxes.clip(image)
    return as_regions(boxes.tensor, image, 8 * torch.rand(count, generator=generator))


def _keep_contrast(backbone: nn.Module) -> None:
    """Weights that do not fade with depth, or random networks see the same everywhere."""
    for block in backbone.modules():
        if isinstance(block, nn.Conv2d):
            nn.init.kaiming_normal_(block.weight, nonlinearity="relu")
        if isinstance(block, Bottleneck):
            block.bn3.weight *= 0.5


def plain_detect(
    boxes_RX: Tensor, scores_RK: Tensor, image_size: tuple[int, int], options: DetectionOptions
) -> tuple[Instances, Tensor]:
    """The specification's steps 4 to 7, with one loop of soft-NMS over all candidates (5.1)."""
    finite = scores_RK.isfinite().all(dim=1)
    rows, classes = ((scores_RK[:, :-1] > options.score_threshold) & finite[:, None]).nonzero(
        as_tuple=True
    )
    boxes = Boxes(boxes_RX[rows])
    boxes.clip(image_size)
    kept, lowered = plain_soft_nms(boxes.tensor, scores_RK[rows, classes], classes)
    kept, lowered = kept[: options.max_detections], lowered[: options.max_detections]
    found = Instances(image_size)
    found.pred_boxes, found.scores, found.pred_classes = boxes[kept], lowered, classes[kept]
    return found, rows[kept]


def _options(device: torch.device, folder: Path) -> list[str]:
    pairs = {
        "MODEL.DEVICE": device.type,
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": CONFIGS / "rpn_fpn.yaml",
        "MODEL.CLIP.BB_RPN_WEIGHTS": None,
        "MODEL.CLIP.TEXT_EMB_PATH": folder / "classes.pth",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.SOFT_NMS_ENABLED": True,
        "MODEL.WEIGHTS": "",
    }
    return [str(word) for pair in pairs.items() for word in pair]
