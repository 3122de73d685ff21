"""Meta-architecture for boxes, image labels and captions (specification section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor

from detic_ext.modeling.caption_batch import draw_captions, gather_captions
from detic_ext.modeling.caption_encoder import CaptionEncoder, build_caption_encoder
from detic_ext.modeling.class_list import class_frequencies
from detic_ext.modeling.class_sampling import ClassSampler
from detic_ext.modeling.supervision import CaptionFeatures, Supervision
from detic_ext.modeling.weak_proposals import propose_without_targets
from ext_common.errors import ConfigError, VocabularyError
from ext_common.modeling.zero_shot_classifier import prepare_classifier
from ext_common.vocabulary import Vocabulary, require_encoder


@META_ARCH_REGISTRY.register()
class CustomRCNN(GeneralizedRCNN):
    """Two-stage detector that learns from boxes, image labels and captions.

    Args:
        with_image_labels: batches say in ``ann_type`` what they are annotated with.
        text_encoder: frozen text tower for captions; None = there are none.
        gather_captions: captions of all processes are compared, not those of one.
        caption_batch_ratio: images of a caption batch per image of a box batch.
        class_sampler: draws the classes of each step; None = all classes.
        half_backbone: run the backbone alone in float16 (bfloat16 on CPU), as published.
        dataset_loss_weight: factor of all losses of a batch, by its ``dataset_source``; empty = 1.
        with_proposals: outputs carry the ``proposals`` too, for the evaluation of their recall.
        rcnn: the arguments of detectron2's GeneralizedRCNN.
    """

    @configurable
    def __init__(
        self,
        *,
        with_image_labels: bool = False,
        text_encoder: CaptionEncoder | None = None,
        gather_captions: bool = False,
        caption_batch_ratio: int = 1,
        class_sampler: ClassSampler | None = None,
        half_backbone: bool = False,
        dataset_loss_weight: Sequence[float] = (),
        with_proposals: bool = False,
        **rcnn: Any,
    ) -> None:
        super().__init__(**rcnn)
        self.with_image_labels = with_image_labels
        self.text_encoder = text_encoder
        self.gather_captions = gather_captions
        self.caption_batch_ratio = caption_batch_ratio
        self.class_sampler = class_sampler
        self.half_backbone = half_backbone
        self.dataset_loss_weight = tuple(dataset_loss_weight)
        self.with_proposals = with_proposals

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        arguments: dict[str, Any] = GeneralizedRCNN.from_config(cfg)
        arguments.update(
            with_image_labels=cfg.WITH_IMAGE_LABELS,
            text_encoder=build_caption_encoder(cfg) if cfg.MODEL.WITH_CAPTION else None,
            gather_captions=cfg.MODEL.SYNC_CAPTION_BATCH,
            caption_batch_ratio=cfg.MODEL.CAP_BATCH_RATIO,
            half_backbone=cfg.FP16,
            dataset_loss_weight=cfg.MODEL.DATASET_LOSS_WEIGHT,
            with_proposals=cfg.EVAL_PROPOSAL_AR,
        )
        if cfg.MODEL.DYNAMIC_CLASSIFIER:
            num_classes = arguments["roi_heads"].num_classes
            frequencies = class_frequencies(cfg, num_classes)
            arguments["class_sampler"] = ClassSampler(
                cfg.MODEL.NUM_SAMPLE_CATS, num_classes, frequencies
            )
        return arguments

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Patterns of weights that a checkpoint may lack.

        The text tower has its own file, and parts of the backbone say which of theirs start fresh
        from classification weights.
        """
        own = [
            f"{name}.{pattern}"
            for name, part in self.backbone.named_modules(prefix="backbone")
            for pattern in getattr(part, "optional_weights", ())
        ]
        return ("text_encoder.*", *own)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Class names and embeddings that the classifier was built from, if it has them."""
        vocabulary: Vocabulary | None = self.roi_heads.vocabulary
        return vocabulary

    def prepare_vocabulary(self, vocabulary: Vocabulary) -> Tensor:
        """Classifier of another vocabulary, for ``forward(..., classifier=)``.

        Args:
            vocabulary: C names with embeddings of the width the head was trained with.

        Returns:
            weights [D, C+1] on the model's device; the last column is the background.

        Raises:
            VocabularyError: no embeddings, or another width.
        """
        width = self.roi_heads.embedding_dim
        if width is None:
            raise VocabularyError(
                "this model has an ordinary classifier, its classes are fixed",
                fix="use a model with MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True",
            )
        trained = self.vocabulary
        encoder_id = trained.encoder_id if trained is not None else ""
        embeddings_CD = require_encoder(vocabulary, encoder_id, width)
        return prepare_classifier(
            embeddings_CD.to(self.device), normalize=self.roi_heads.normalizes_classifier
        )

    def forward(
        self, batched_inputs: list[dict[str, Any]], classifier: Tensor | None = None
    ) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2's dicts; in training also ``ann_type``, ``pos_category_ids``
                and ``dataset_source`` where the model was built with image labels.
            classifier: weights [D, C'+1] of :meth:`prepare_vocabulary`, for this call alone
                (inference).

        Returns:
            Training: loss name -> scalar; every kind of batch gives the same names.
            Inference: one ``{"instances": Instances}`` per image (and ``proposals``, see above).
        """
        if not self.training:
            return self.inference(batched_inputs, classifier=classifier)
        supervision = self._supervision(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self._features(images)
        targets: list[Instances] | None = None
        if supervision.has_boxes:
            targets = [item["instances"].to(self.device) for item in batched_inputs]
            if supervision.ann_type != "box":
                for target in targets:
                    target.gt_classes = torch.zeros_like(target.gt_classes)
            proposals, losses = self.proposal_generator(images, features, targets)
        else:
            proposals, losses = propose_without_targets(self.proposal_generator, images, features)
        _, head_losses = self.roi_heads(
            images, features, proposals, targets, supervision=supervision
        )
        if self.vis_period > 0 and supervision.ann_type == "box":
            self._visualize_periodically(batched_inputs, proposals)
        return self._weighted({**head_losses, **losses}, batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
        classifier: Tensor | None = None,
    ) -> Any:
        """Detections; ``classifier`` replaces the built-in vocabulary for this call alone."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals: list[Instances] | None = None
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, classifier=classifier)
        else:
            given = [instances.to(self.device) for instances in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        if not do_postprocess:
            return results
        outputs = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
        if self.with_proposals and proposals is not None:
            for output, found, item in zip(outputs, proposals, batched_inputs, strict=True):
                size = found.image_size
                height, width = item.get("height", size[0]), item.get("width", size[1])
                # it scales the boxes in place, which the detections have come from
                output["proposals"] = detector_postprocess(_own_boxes(found), height, width)
        return outputs

    def _supervision(self, batched_inputs: list[dict[str, Any]]) -> Supervision:
        if not self.with_image_labels:
            supervision = Supervision()
        else:
            supervision = Supervision.from_batch(batched_inputs)
        if self.text_encoder is not None:
            captions = self._captions(self.text_encoder, supervision, batched_inputs)
            supervision = replace(supervision, captions=captions)
        if self.class_sampler is not None:
            subset = self.class_sampler(supervision, batched_inputs)
            supervision = replace(supervision, subset=subset)
        return supervision

    def _captions(
        self,
        encoder: CaptionEncoder,
        supervision: Supervision,
        batched_inputs: list[dict[str, Any]],
    ) -> CaptionFeatures | None:
        own_BD: Tensor | None = None
        if supervision.has_captions:
            own_BD = encoder.encode(draw_captions(batched_inputs))
        if not self.gather_captions:
            return None if own_BD is None else CaptionFeatures(own_BD)
        width = self.roi_heads.embedding_dim
        if width is None:
            raise ConfigError(
                "captions are compared with text embeddings, this classifier has none",
                fix="set MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True",
            )
        ratio = self.caption_batch_ratio if supervision.has_boxes else 1
        return gather_captions(own_BD, len(batched_inputs) * ratio, width, self.device)

    def _features(self, images: ImageList) -> dict[str, Tensor]:
        if not self.half_backbone:
            features: dict[str, Tensor] = self.backbone(images.tensor)
            return features
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype):
            features = self.backbone(images.tensor)
        return {name: value.float() for name, value in features.items()}

    def _weighted(
        self, losses: dict[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        if not self.dataset_loss_weight:
            return losses
        weight = self.dataset_loss_weight[int(batched_inputs[0].get("dataset_source", 0))]
        return {name: value * weight for name, value in losses.items()}

    def _visualize_periodically(
        self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]
    ) -> None:
        from detectron2.utils.events import get_event_storage

        if get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)


def _own_boxes(proposals: Instances) -> Instances:
    """The same proposals with boxes of their own, scored."""
    copied = Instances(proposals.image_size)
    copied.proposal_boxes = proposals.proposal_boxes.clone()
    copied.objectness_logits = proposals.objectness_logits
    return copied
