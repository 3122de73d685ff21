"""Settings of CenterNet's targets, losses and decoding."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode


@dataclass(frozen=True)
class TargetOptions:
    """How boxes become targets.

    Args:
        strides: pixels per cell of each level.
        sizes: per level the least and the greatest half diagonal (pixels, both included) of the
            boxes it is responsible for.
        min_overlap: heatmap radius: least IoU of a box shifted by it.
        min_radius: least heatmap radius, pixels.
        more_positives: also take good cells around each centre as positives.
        more_threshold: their regression loss is below this.
        more_count: at most so many per box.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    sizes: tuple[tuple[float, float], ...] = (
        (0, 80),
        (64, 160),
        (128, 320),
        (256, 640),
        (512, 10_000_000),
    )
    min_overlap: float = 0.8
    min_radius: float = 4.0
    more_positives: bool = False
    more_threshold: float = 0.2
    more_count: int = 9


@dataclass(frozen=True)
class LossOptions:
    """Weights and exponents of the losses; names as in the configuration.

    Args:
        alpha: focal loss: weight of positives, 1 - alpha of negatives.
        beta: exponent that spares negatives near a centre.
        gamma: exponent of the error.
        clamp: scores stay this far from 0 and 1.
        ignore_high_fp: negatives that score at least this are dropped; not positive = none.
        pos_weight: factor of the positive heatmap loss.
        neg_weight: factor of the negative heatmap loss.
        reg_weight: factor of the box loss.
        location: ``giou``, ``iou`` or ``linear_iou``.
        weigh_location: weight the box loss by the heatmap instead of equally.
        reduce: normalise by the mean count over processes.
    """

    alpha: float = 0.25
    beta: float = 4.0
    gamma: float = 2.0
    clamp: float = 1e-4
    ignore_high_fp: float = -1.0
    pos_weight: float = 1.0
    neg_weight: float = 1.0
    reg_weight: float = 2.0
    location: str = "giou"
    weigh_location: bool = False
    reduce: bool = True


@dataclass(frozen=True)
class DecodeOptions:
    """How maps become boxes; pairs are (training, test).

    Args:
        score_threshold: candidates score above this.
        pre_topk: candidates per level.
        post_topk: boxes per image.
        nms_threshold: IoU.
        center_nms: keep 3x3 peaks of the heatmap and skip the box NMS.
        box_nms: False = no NMS of boxes at all.
        sqrt_score: report the square root of the score.
    """

    score_threshold: float = 0.05
    pre_topk: tuple[int, int] = (1000, 1000)
    post_topk: tuple[int, int] = (100, 100)
    nms_threshold: tuple[float, float] = (0.6, 0.6)
    center_nms: bool = False
    box_nms: bool = True
    sqrt_score: bool = False


def options_from_config(cfg: CfgNode) -> tuple[TargetOptions, LossOptions, DecodeOptions]:
    """Read ``MODEL.CENTERNET``."""
    node = cfg.MODEL.CENTERNET
    targets = TargetOptions(
        strides=tuple(node.FPN_STRIDES),
        sizes=tuple((float(low), float(high)) for low, high in node.SOI),
        min_overlap=node.HM_MIN_OVERLAP,
        min_radius=node.MIN_RADIUS,
        more_positives=node.MORE_POS,
        more_threshold=node.MORE_POS_THRESH,
        more_count=node.MORE_POS_TOPK,
    )
    losses = LossOptions(
        alpha=node.HM_FOCAL_ALPHA,
        beta=node.HM_FOCAL_BETA,
        gamma=node.LOSS_GAMMA,
        clamp=node.SIGMOID_CLAMP,
        ignore_high_fp=node.IGNORE_HIGH_FP,
        pos_weight=node.POS_WEIGHT,
        neg_weight=node.NEG_WEIGHT,
        reg_weight=node.REG_WEIGHT,
        location=node.LOC_LOSS_TYPE,
        weigh_location=not node.NOT_NORM_REG,
        reduce=not node.NO_REDUCE,
    )
    decode = DecodeOptions(
        score_threshold=node.INFERENCE_TH,
        pre_topk=(node.PRE_NMS_TOPK_TRAIN, node.PRE_NMS_TOPK_TEST),
        post_topk=(node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST),
        nms_threshold=(node.NMS_TH_TRAIN, node.NMS_TH_TEST),
        center_nms=node.CENTER_NMS,
        box_nms=not node.NOT_NMS,
        sqrt_score=node.WITH_AGN_HM,
    )
    return targets, losses, decode
