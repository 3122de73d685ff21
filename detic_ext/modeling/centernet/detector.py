"""CenterNet as a one-stage detector, without ROI heads (specification section 1.2).

The heatmap has one channel per class (``MODEL.CENTERNET.ONLY_PROPOSAL False``). With
``WITH_AGN_HM`` the class scores are multiplied by the class-agnostic ones. With ``ONLY_PROPOSAL``
it finds objects of a single class "object".
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detectron2.structures import ImageList, Instances

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY

_NAME = "CenterNetDetector"


@META_ARCH_REGISTRY.register()
class CenterNetDetector(ProposalNetwork):
    """Backbone and CenterNet; keys in a state dict are those of a two-stage model's first stage.

    Args:
        backbone: gives the pyramid.
        proposal_generator: a :class:`~detic_ext.modeling.centernet.generator.CenterNet`.
        pixel_mean: one value per channel.
        pixel_std: one value per channel.
    """

    @property
    def num_classes(self) -> int:
        """Classes that are detected."""
        return self.proposal_generator.centernet_head.options.num_classes or 1

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2's dicts; in training with ``instances``.

        Returns:
            Training: loss name -> scalar. Inference: one ``{"instances": Instances}`` per image
            with ``pred_boxes``, ``scores`` and ``pred_classes``, in the requested size.
        """
        pictures = [
            (item["image"].to(self.device) - self.pixel_mean) / self.pixel_std
            for item in batched_inputs
        ]
        images = ImageList.from_tensors(pictures, self.backbone.size_divisibility)
        features = self.backbone(images.tensor)
        if self.training:
            targets = [item["instances"].to(self.device) for item in batched_inputs]
            _, losses = self.proposal_generator(images, features, targets)
            return losses
        found, _ = self.proposal_generator(images, features, None)
        detections = [_as_detections(instances) for instances in found]
        return GeneralizedRCNN._postprocess(detections, batched_inputs, images.image_sizes)


def _as_detections(found: Instances) -> Instances:
    if found.has("pred_boxes"):
        return found
    detections = Instances(found.image_size)
    detections.pred_boxes = found.proposal_boxes
    detections.scores = found.scores
    detections.pred_classes = found.pred_classes
    return detections


@CONFIG_CHECK_REGISTRY.register()
def check_centernet_detector(cfg: CfgNode, training: bool) -> None:
    """Check the keys of a model whose ``META_ARCHITECTURE`` is ``CenterNetDetector``.

    Raises:
        ConfigError: another proposal generator, no heatmap at all, or masks.
    """
    del training
    if cfg.MODEL.META_ARCHITECTURE != _NAME:
        return
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "CenterNet":
        raise ConfigError(
            f"{_NAME} detects with CenterNet, not {cfg.MODEL.PROPOSAL_GENERATOR.NAME}",
            where="MODEL.PROPOSAL_GENERATOR.NAME",
            fix="set it CenterNet",
        )
    node = cfg.MODEL.CENTERNET
    if node.ONLY_PROPOSAL and not node.WITH_AGN_HM:
        raise ConfigError(
            "MODEL.CENTERNET.ONLY_PROPOSAL without WITH_AGN_HM leaves no heatmap",
            fix="set WITH_AGN_HM True, or ONLY_PROPOSAL False to detect classes",
        )
    if cfg.MODEL.MASK_ON:
        raise ConfigError(
            f"{_NAME} gives boxes only",
            where="MODEL.MASK_ON",
            fix="set it False, or use MODEL.META_ARCHITECTURE CustomRCNN",
        )
