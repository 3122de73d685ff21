"""From class probabilities and boxes to the detections of an image (specification 5.1, steps 4-7).

Legend: R regions, C classes, K = C + 1 columns with the background last, X = 4 or 4 C numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ext_common.nms import detect_class_wise
from regionclip_ext.modeling.soft_nms import SoftNMSOptions, soft_nms


@dataclass(frozen=True)
class DetectionOptions:
    """What becomes a detection.

    Args:
        score_threshold: detections score above this.
        nms_threshold: IoU of the NMS within a class.
        max_detections: per image.
        soft: lower scores instead of dropping boxes; None = ordinary NMS.
        one_class: a region is of its best class only.
    """

    score_threshold: float = 0.001
    nms_threshold: float = 0.5
    max_detections: int = 100
    soft: SoftNMSOptions | None = None
    one_class: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DetectionOptions:
        """Translate config keys; the threshold of linear soft-NMS is that of NMS."""
        heads = cfg.MODEL.ROI_HEADS
        soft = None
        if heads.SOFT_NMS_ENABLED:
            soft = SoftNMSOptions(
                method=heads.SOFT_NMS_METHOD,
                sigma=heads.SOFT_NMS_SIGMA,
                linear_threshold=heads.NMS_THRESH_TEST,
                prune=heads.SOFT_NMS_PRUNE,
            )
        return cls(
            score_threshold=heads.SCORE_THRESH_TEST,
            nms_threshold=heads.NMS_THRESH_TEST,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            soft=soft,
            one_class=bool(heads.get("ONE_CLASS_PER_PROPOSAL", False)),
        )


def detect(
    boxes_RX: Tensor, scores_RK: Tensor, image_size: tuple[int, int], options: DetectionOptions
) -> tuple[Instances, Tensor]:
    """Detections of one image.

    Rows that are not finite are dropped, boxes are clipped to the image, then come the threshold,
    NMS or soft-NMS within every class, and the best. The tensors given are left as they are.

    Args:
        boxes_RX: XYXY pixels, the same for all classes or one per class.
        scores_RK: what ranks the detections; the last column is the background.
        image_size: (height, width).
        options: thresholds.

    Returns:
        ``pred_boxes``, ``scores`` and ``pred_classes`` by falling score, and the number of the
        region [n] of each.
    """
    if options.one_class:
        classes_RC = scores_RK[:, :-1]
        best_R1 = classes_RC.amax(dim=1, keepdim=True)
        kept_RC = torch.where(classes_RC >= best_R1, classes_RC, torch.zeros_like(classes_RC))
        # NaN rows stay NaN, so that they are dropped
        kept_RC = torch.where(classes_RC.isnan(), classes_RC, kept_RC)
        scores_RK = torch.cat([kept_RC, scores_RK[:, -1:]], dim=1)
    if options.soft is None:
        (found,), (rows,) = detect_class_wise(
            [boxes_RX],
            [scores_RK],
            [image_size],
            score_threshold=options.score_threshold,
            nms_threshold=options.nms_threshold,
            max_detections=options.max_detections,
        )
        return found, rows
    return _detect_soft(boxes_RX, scores_RK, image_size, options, options.soft)


def _detect_soft(
    boxes_RX: Tensor,
    scores_RK: Tensor,
    image_size: tuple[int, int],
    options: DetectionOptions,
    soft: SoftNMSOptions,
) -> tuple[Instances, Tensor]:
    finite_R = boxes_RX.isfinite().all(dim=1) & scores_RK.isfinite().all(dim=1)
    wanted_RC = (scores_RK[:, :-1] > options.score_threshold) & finite_R[:, None]
    rows_N, classes_N = wanted_RC.nonzero(as_tuple=True)
    own = boxes_RX.shape[1] // 4  # boxes per region: one, or one of every class
    boxes = Boxes(boxes_RX.view(len(boxes_RX), own, 4)[rows_N, classes_N * (own > 1)])
    boxes.clip(image_size)
    keep_K, scores_K = soft_nms(
        boxes.tensor, scores_RK[rows_N, classes_N], classes_N, soft, options.max_detections
    )
    found = Instances(image_size)
    found.pred_boxes = boxes[keep_K]
    found.scores = scores_K
    found.pred_classes = classes_N[keep_K]
    return found, rows_N[keep_K]
