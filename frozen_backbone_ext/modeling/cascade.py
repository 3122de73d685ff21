"""Cascade heads that average losses and logits over the stages, as in the release (spec 2.4).

Shape suffixes: R regions, K classes and background.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F


@ROI_HEADS_REGISTRY.register()
class PaperCascadeROIHeads(CascadeROIHeads):
    """detectron2's cascade with two more choices; without them it is detectron2's.

    Args:
        average_losses: divide the losses of every stage by the number of stages; the gradient into
            the features is then not scaled another time.
        average_logits: at test, take the softmax of the mean logits instead of the mean of
            probabilities.
        options: of ``CascadeROIHeads``.
    """

    @configurable
    def __init__(
        self, *, average_losses: bool = False, average_logits: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.average_losses = average_losses
        self.average_logits = average_logits

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        """Translate the keys of detectron2 and two more of ``ROI_BOX_CASCADE_HEAD``."""
        options: dict[str, Any] = super().from_config(cfg, input_shape)
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        options["average_losses"] = cascade.AVERAGE_LOSSES
        options["average_logits"] = cascade.AVERAGE_LOGITS
        return options

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int) -> Any:
        if not self.average_losses:
            return super()._run_stage(features, proposals, stage)
        pooled_RCHW = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled_RCHW))

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: Any = None
    ) -> Any:
        if self.training:
            losses = super()._forward_box(features, proposals, targets)
            if not self.average_losses:
                return losses
            return {name: loss / self.num_cascade_stages for name, loss in losses.items()}
        if not self.average_logits:
            return super()._forward_box(features, proposals, targets)
        return self._detect(features, proposals)

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        """Boxes of the last stage with the softmax of the mean logits."""
        maps = [features[name] for name in self.box_in_features]
        sizes = [one.image_size for one in proposals]
        total_RK: Any = 0
        boxes: Any = None
        predictor: Any = None
        for stage in range(self.num_cascade_stages):
            if boxes is not None:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictor = self.box_predictor[stage]
            predictions = self._run_stage(maps, proposals, stage)
            total_RK = total_RK + predictions[0]
            boxes = predictor.predict_boxes(predictions, proposals)
        scores_RK = F.softmax(total_RK / self.num_cascade_stages, dim=-1)
        counts = [len(one) for one in proposals]
        found: list[Instances] = fast_rcnn_inference(
            boxes,
            scores_RK.split(counts),
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )[0]
        return found
