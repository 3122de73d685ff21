"""Switches of the ROI heads."""

from __future__ import annotations

from dataclasses import dataclass, field

from detectron2.config import CfgNode

from detic_ext.modeling.box_inference import InferenceOptions


@dataclass(frozen=True)
class DeticHeadOptions:
    """Switches of the ROI heads.

    Args:
        mask_weight: factor of the mask loss.
        masks_need_first_image: a batch whose first image shows no object trains no masks.
        with_image_labels: every batch reports ``image_loss``, box batches a zero.
        weak_proposals: proposals used of an image without boxes.
        image_box_share: append a box over this share of such an image; None = do not.
        weak_all_stages: image labels and captions teach every stage, else the first alone.
        keep_features: training proposals carry the features of the first stage as ``feat``.
        inference: how detections are kept.
    """

    mask_weight: float = 1.0
    masks_need_first_image: bool = False
    with_image_labels: bool = False
    weak_proposals: int = 128
    image_box_share: float | None = None
    weak_all_stages: bool = True
    keep_features: bool = False
    inference: InferenceOptions = field(default_factory=InferenceOptions)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DeticHeadOptions:
        """Read the options from a configuration."""
        box, heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return cls(
            mask_weight=heads.MASK_WEIGHT,
            masks_need_first_image=heads.MASKS_NEED_FIRST_IMAGE,
            with_image_labels=cfg.WITH_IMAGE_LABELS,
            weak_proposals=box.WS_NUM_PROPS,
            image_box_share=box.IMAGE_BOX_SIZE if box.ADD_IMAGE_BOX else None,
            weak_all_stages=box.IMAGE_LOSS_ALL_STAGES,
            keep_features=box.ADD_FEATURE_TO_PROP,
            inference=InferenceOptions(
                score_threshold=heads.SCORE_THRESH_TEST,
                nms_threshold=heads.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                multiply_proposal_score=box.MULT_PROPOSAL_SCORE,
                one_class_per_proposal=heads.ONE_CLASS_PER_PROPOSAL,
            ),
        )
