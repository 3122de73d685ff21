"""The two-branch detector: frozen regions, CLIP features (specification 4 and 5).

Legend: N images, C classes, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_roi_heads
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ext_common.errors import VocabularyError
from ext_common.vocabulary import Vocabulary, require_encoder
from regionclip_ext.checkpoint import WeightFiles, clip_weights
from regionclip_ext.modeling.language_encoder import language_encoder_from_config
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images
from regionclip_ext.modeling.predictor import ClipPredictor
from regionclip_ext.modeling.regions.ground_truth import GroundTruthRegions
from regionclip_ext.modeling.regions.offline import OfflineRPN, build_offline_rpn
from regionclip_ext.modeling.roi_heads import CLIPRes5ROIHeads

OFFLINE_PREFIXES = ("offline_backbone.", "offline_proposal_generator.")


@META_ARCH_REGISTRY.register()
class CLIPFastRCNN(nn.Module):
    """Detector whose regions come from a frozen branch, or are ground truth.

    Args:
        backbone: CLIP's image encoder (or an FPN over it).
        roi_heads: classify regions; get last stage and attention pool from the backbone.
        pixels: what the encoder was trained on.
        offline: frozen RPN; None = ground-truth boxes.
        ground_truth: boxes of images without ``instances``, where ``offline`` is None.
        input_format: channel order of the pictures given, ``RGB`` or ``BGR``.
        offline_fixed: the branch has weights of its own file: those of a checkpoint are ignored.
        lang_encoder: text tower, kept for tools that embed concepts; None = none.
        weight_files: files besides ``MODEL.WEIGHTS``, loaded here.
    """

    _device_marker: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        roi_heads: CLIPRes5ROIHeads,
        pixels: PixelFormat,
        offline: OfflineRPN | None = None,
        ground_truth: GroundTruthRegions | None = None,
        input_format: str = "RGB",
        offline_fixed: bool = False,
        lang_encoder: nn.Module | None = None,
        weight_files: WeightFiles | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.roi_heads = roi_heads
        roi_heads.attach(backbone)
        self.pixels = pixels
        self.input_format = input_format
        self.offline = offline
        self.offline_fixed = offline_fixed
        if offline is not None:
            self.offline_backbone = offline.backbone
            self.offline_proposal_generator = offline.proposal_generator
        self.ground_truth = ground_truth or GroundTruthRegions()
        self.lang_encoder = lang_encoder
        self.register_buffer("_device_marker", torch.zeros(0), persistent=False)
        self.weight_files = weight_files or WeightFiles()
        self.weight_files.load_into(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        clip = cfg.MODEL.CLIP
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixels": PixelFormat("RGB", tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)),
            "offline": None if clip.CROP_REGION_TYPE == "GT" else build_offline_rpn(cfg),
            "ground_truth": GroundTruthRegions.from_config(cfg),
            "input_format": cfg.INPUT.FORMAT,
            "lang_encoder": language_encoder_from_config(cfg) if clip.GET_CONCEPT_EMB else None,
            "weight_files": WeightFiles(clip.ENCODER_WEIGHTS or "", clip.BB_RPN_WEIGHTS or ""),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device_marker.device

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Classes that are detected at test, if they are known."""
        return getattr(self.roi_heads.box_predictor, "vocabulary", None)

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Patterns of weights that a file may lack, or have besides.

        Pretraining checkpoints hold a teacher and a text encoder, no box regressor and no mask head;
        embeddings and regions that the configuration brings are not taken from a file.
        """
        predictor = self.roi_heads.box_predictor
        patterns = ["teacher_backbone.*", "roi_heads.mask_head.*"]
        patterns.append("roi_heads.box_predictor.bbox_pred.*")
        patterns.append("roi_heads.box_predictor.cls_bg_score.weight")
        if self.lang_encoder is None:
            patterns.append("lang_encoder.*")
        if self.offline is None or self.offline_fixed:
            patterns += [f"{prefix}*" for prefix in OFFLINE_PREFIXES]
        if isinstance(predictor, ClipPredictor):
            patterns.append("roi_heads.box_predictor.test_cls_score.weight")
            # without a vocabulary it says so when it is first asked to detect
            patterns.append("roi_heads.box_predictor.cls_score.weight")
        return tuple(patterns)

    def translate_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """OpenAI's and open_clip's files under this model's names (``checkpoint.TranslatesWeights``)."""
        return clip_weights(tensors, self.state_dict(keep_vars=True))

    def prepare_vocabulary(self, vocabulary: Vocabulary) -> Tensor:
        """Classifier of another vocabulary, for ``forward(..., classifier=)``.

        Args:
            vocabulary: C names with embeddings of the encoder's width.

        Returns:
            unit rows [C, D] on the model's device.

        Raises:
            VocabularyError: no embeddings, another width, or a model with fixed classes.
        """
        predictor = self.roi_heads.box_predictor
        if not isinstance(predictor, ClipPredictor):
            raise VocabularyError(
                "this model has an ordinary classifier, its classes are fixed",
                fix="use a model with MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER True",
            )
        trained = predictor.trained
        width = predictor.cls_score.weight.shape[1]
        emb_CD = require_encoder(vocabulary, trained.encoder_id if trained else "", width)
        return predictor.prepare(emb_CD.to(self.device))

    def train(self, mode: bool = True) -> CLIPFastRCNN:
        """Switch the mode; what is frozen stays in evaluation mode (pitfall 11.20)."""
        super().train(mode)
        if self.offline is not None:
            self.offline.freeze()
        if self.lang_encoder is not None:
            self.lang_encoder.eval()
        return self

    def forward(
        self, batched_inputs: list[dict[str, Any]], classifier: Tensor | None = None
    ) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2's dicts.
            classifier: from :meth:`prepare_vocabulary`, for this call alone (inference).

        Returns:
            Training: ``loss_cls``, ``loss_box_reg`` and, with masks, ``loss_mask``.
            Inference: one ``{"instances": Instances}`` per image.
        """
        if not self.training:
            return self.inference(batched_inputs, classifier=classifier)
        images, features, proposals = self.see(batched_inputs)
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        _, losses = self.roi_heads(images, features, proposals, targets)
        return losses

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
        classifier: Tensor | None = None,
    ) -> Any:
        """Detections; with ``detected_instances`` only their masks."""
        if detected_instances is None:
            images, features, proposals = self.see(batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, classifier=classifier)
        else:
            images = self.preprocess_image(batched_inputs)
            given = [instances.to(self.device) for instances in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(self.backbone(images.tensor), given)
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    def see(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> tuple[ImageList, dict[str, Tensor], list[Instances]]:
        """Normalised batch, its feature maps, and its regions."""
        proposals = self.propose(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        return images, self.backbone(images.tensor), proposals

    def propose(self, batched_inputs: Sequence[dict[str, Any]]) -> list[Instances]:
        """Regions of a batch, at the size of the model's input."""
        if self.offline is None:
            return self.ground_truth.propose(batched_inputs, self.device)
        pictures = [item["image"].to(self.device) for item in batched_inputs]
        return self.offline.propose(pictures, _sizes(pictures))

    def preprocess_image(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """The batch as CLIP takes it; padding is 0."""
        pictures = [item["image"].to(self.device) for item in batched_inputs]
        return normalize_images(
            pictures,
            _sizes(pictures),
            self.pixels,
            channels=self.input_format,
            divisibility=self.backbone.size_divisibility,
        )

    def region_embeddings(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Regions of a batch and their un-normalised embeddings [R, D], for extraction tools."""
        _, features, proposals = self.see(batched_inputs)
        boxes: list[Boxes] = [image.proposal_boxes for image in proposals]
        embeddings = self.roi_heads.embed(self.roi_heads.region_maps(features, boxes))
        return proposals, list(embeddings.split([len(image) for image in proposals]))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.offline_fixed:
            for name, value in self.state_dict().items():
                if name.startswith(OFFLINE_PREFIXES):
                    state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _sizes(pictures: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(int(picture.shape[-2]), int(picture.shape[-1])) for picture in pictures]
