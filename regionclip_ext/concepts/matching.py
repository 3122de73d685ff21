"""Pseudo labels: the concepts that the teacher sees in regions.

Shapes: R regions of all images of this process, C concepts, D the teacher's embedding width.
Source: RegionCLIP specification 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regionclip_ext.losses.similarity import cosine_logits

TEACHER_TEMPERATURE = 0.01
"""Of the teacher's softmax as published, independent of ``MODEL.CLIP.CLSS_TEMP``."""


@dataclass(frozen=True)
class ConceptMatch:
    """What the teacher says about regions.

    Args:
        probs_RC: float32; softmax over the pool, the soft labels.
        labels_R: int64; the most probable concept.
        kept_R: bool; confident enough, or all True where no region of the batch is.
        confident_R: bool; the same without that fallback.
        confidence_R: float32; the probability of that concept.
    """

    probs_RC: Tensor
    labels_R: Tensor
    kept_R: Tensor
    confident_R: Tensor
    confidence_R: Tensor


@torch.no_grad()
def match_concepts(
    regions_RD: Tensor,
    concepts_CD: Tensor,
    threshold: float,
    *,
    temperature: float = TEACHER_TEMPERATURE,
) -> ConceptMatch:
    """Label regions with concepts; nothing here waits for the device.

    Args:
        regions_RD: the teacher's region features, un-normalised.
        concepts_CD: the teacher's pool, un-normalised.
        threshold: a region is kept where its largest probability is above (``CONCEPT_THRES``).
        temperature: of the softmax (``TEACHER_TEMP``).
    """
    probs_RC = cosine_logits(regions_RD, concepts_CD, temperature).softmax(dim=1)
    confidence_R, labels_R = probs_RC.max(dim=1)
    confident_R = confidence_R > threshold
    kept_R = confident_R | ~confident_R.any()
    return ConceptMatch(probs_RC, labels_R, kept_R, confident_R, confidence_R)
