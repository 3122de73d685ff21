"""From class scores of regions to detections (specification section 1.3).

Shapes: R regions of one image, C foreground classes; column C is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from ext_common.nms import detect_class_wise


@dataclass(frozen=True)
class InferenceOptions:
    """How detections are kept.

    Args:
        score_threshold: detections score above this, 0 to 1.
        nms_threshold: IoU of the class-wise non-maximum suppression.
        max_detections: per image.
        multiply_proposal_score: score = sqrt(class score * proposal score).
        one_class_per_proposal: keep the best class of each region only.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    multiply_proposal_score: bool = False
    one_class_per_proposal: bool = False


def fuse_scores(
    stage_scores: Sequence[Tensor], proposal_scores_R: Tensor | None, options: InferenceOptions
) -> Tensor:
    """Scores of one image's regions from those of the stages.

    Args:
        stage_scores: per stage probabilities [R, C+1].
        proposal_scores_R: probabilities of the proposal generator; read with
            ``multiply_proposal_score`` only.
        options: which of the fusions apply.

    Returns:
        [R, C+1]; with ``one_class_per_proposal`` zero outside each row's best foreground class
        (ties are all kept).
    """
    scores_RK = torch.stack(tuple(stage_scores)).mean(dim=0)
    if options.multiply_proposal_score:
        if proposal_scores_R is None:
            raise ValueError("multiply_proposal_score needs the scores of the proposals")
        scores_RK = (scores_RK * proposal_scores_R[:, None]).sqrt()
    if options.one_class_per_proposal:
        best_R1 = scores_RK[:, :-1].max(dim=1, keepdim=True).values
        # the background column is compared too, so it survives where it ties or wins
        scores_RK = torch.where(scores_RK == best_R1, scores_RK, torch.zeros_like(scores_RK))
    return scores_RK


def detect(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    options: InferenceOptions,
) -> list[Instances]:
    """Threshold, class-wise NMS and top-k.

    Args:
        boxes: per image [R, 4] XYXY pixels.
        scores: per image [R, C+1].
        image_sizes: per image (height, width).
        options: thresholds.

    Returns:
        Per image ``pred_boxes``, ``scores`` and ``pred_classes``, sorted by falling score.
    """
    instances, _ = detect_class_wise(
        boxes,
        scores,
        image_sizes,
        score_threshold=options.score_threshold,
        nms_threshold=options.nms_threshold,
        max_detections=options.max_detections,
    )
    return instances


def proposal_probabilities(proposals: Sequence[Instances]) -> list[Tensor]:
    """Per image the score of each proposal: ``scores`` where present, else ``objectness_logits``.

    CenterNet writes probabilities into ``objectness_logits``; detectron2's RPN writes logits, which
    :func:`detic_ext.config_checks.check_detic` refuses to combine with the fusion.
    """
    return [p.scores if p.has("scores") else p.objectness_logits for p in proposals]
