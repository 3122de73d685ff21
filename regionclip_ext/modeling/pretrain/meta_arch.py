"""RegionCLIP pretraining (specification 3).

Legend: N images, B padded to one size, R sampled regions of all images, C concepts, D joint
embedding of the student, T of the teacher, L tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_roi_heads
from detectron2.structures import Boxes
from torch import Tensor, nn

from ext_common.errors import ConfigError
from regionclip_ext.checkpoint import clip_weights
from regionclip_ext.concepts.matching import ConceptMatch, match_concepts
from regionclip_ext.losses.concept_contrast import concept_contrast_loss
from regionclip_ext.losses.image_text import image_text_loss
from regionclip_ext.losses.region_distillation import region_distillation_loss
from regionclip_ext.losses.similarity import cosine_logits
from regionclip_ext.modeling.clip_resnet import ClipResNet, build_teacher_backbone
from regionclip_ext.modeling.language_encoder import language_encoder_from_config
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images
from regionclip_ext.modeling.pretrain.batch import PretrainBatch
from regionclip_ext.modeling.pretrain.concept_pools import ConceptPools
from regionclip_ext.modeling.pretrain.frozen import copied, copied_boxes, frozen_pass
from regionclip_ext.modeling.pretrain.options import PretrainOptions
from regionclip_ext.modeling.pretrain.region_head import (
    PretrainRes5ROIHeads,
    joined,
    separated,
    whole_images,
)
from regionclip_ext.modeling.pretrain.region_sources import build_region_source, sample_regions
from regionclip_ext.modeling.pretrain.shared_stages import FirstMaps, SharedStages, run_encoder
from regionclip_ext.modeling.pretrain.statistics import PretrainStatistics
from regionclip_ext.modeling.regions.offline import OfflineRPN
from regionclip_ext.modeling.regions.source import RegionSource

_FROZEN = (
    "teacher_backbone",
    "lang_encoder",
    "offline_backbone",
    "offline_proposal_generator",
)


@META_ARCH_REGISTRY.register()
class PretrainFastRCNN(nn.Module):
    """Trains ``backbone`` by the pseudo labels of ``teacher_backbone`` and by captions.

    Only the student is trained; everything else is frozen, runs without gradients and stays in
    evaluation mode. Module names are the published ones. Pools are buffers that checkpoints do not
    hold.

    Args:
        backbone: the student.
        roi_heads: pools regions.
        pixels: what student and teacher were trained on.
        options: of a step.
        teacher: None without a pool.
        lang_encoder: of captions; None without the image-text loss.
        pools: concept embeddings; None = no region losses.
        regions: where regions come from; None = samples bring ``proposals``.
    """

    concepts_CD: Tensor
    teacher_concepts_CT: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: ClipResNet,
        roi_heads: PretrainRes5ROIHeads,
        pixels: PixelFormat,
        options: PretrainOptions,
        teacher: ClipResNet | None = None,
        lang_encoder: nn.Module | None = None,
        pools: ConceptPools | None = None,
        regions: RegionSource | None = None,
    ) -> None:
        super().__init__()
        if (pools is None) != (teacher is None):
            raise ConfigError(
                "a teacher and a concept pool belong together", where="MODEL.CLIP.CONCEPT_POOL_EMB"
            )
        if pools is None and not options.image_text:
            raise ConfigError(
                "there is nothing to train on: no concept pool and no image-text loss",
                where="MODEL.CLIP.CONCEPT_POOL_EMB",
                fix="name a pool, or set MODEL.CLIP.PRETRAIN_IMG_TXT_LEVEL True",
            )
        self.backbone = backbone
        self.roi_heads = roi_heads
        self.options = options
        self.pixels = pixels
        self.regions = regions
        self._shared_stages = SharedStages()
        self._statistics = PretrainStatistics()
        self.lang_encoder = lang_encoder
        self.teacher_backbone = teacher
        # regionclip_ext.checkpoint says when these have weights of files of their own
        self.offline_fixed = self.teacher_fixed = False
        if isinstance(regions, OfflineRPN):
            self.offline_backbone = regions.backbone
            self.offline_proposal_generator = regions.proposal_generator
        if pools is not None:
            self.register_buffer("concepts_CD", pools.student_CD, persistent=False)
            self.register_buffer("teacher_concepts_CT", pools.teacher_CT, persistent=False)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build all parts, with random weights."""
        pools = ConceptPools.from_config(cfg)
        options = PretrainOptions.from_config(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixels": PixelFormat("RGB", tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)),
            "options": options,
            "teacher": None if pools is None else build_teacher_backbone(cfg),
            "lang_encoder": language_encoder_from_config(cfg) if options.image_text else None,
            "pools": pools,
            "regions": None if pools is None else build_region_source(cfg),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.backbone.parameters()).device

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Patterns of weights that a file may lack or have besides.

        Parts that are not built here, and teacher and offline branch where they have weights of
        their own.
        """
        built = {name for name, _ in self.named_children()} - set(self._fixed)
        return tuple(f"{name}.*" for name in (*_FROZEN, "roi_heads") if name not in built)

    def translate_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """OpenAI's and open_clip's files under this model's names (``checkpoint.TranslatesWeights``).

        Such a file fills student, teacher and text encoder. What has weights of its own file
        (``TEACHER_ENCODER_WEIGHTS``, ``BB_RPN_WEIGHTS``) keeps them, whatever the file has.
        """
        own = self.state_dict(keep_vars=True)
        wanted = {n: t for n, t in own.items() if not n.startswith(self._fixed)}
        known = clip_weights(tensors, wanted)
        return {n: t for n, t in known.items() if not n.startswith(self._fixed)}

    def train(self, mode: bool = True) -> PretrainFastRCNN:
        """Switch the student; frozen networks stay in evaluation mode (pitfall 20)."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batched_inputs: per image ``image`` (RGB [3, H, W]: uint8, or float from 0 to 1),
                ``tokens`` (int64 [L] of one caption) and, where they come from a file,
                ``proposals`` (``proposal_boxes`` in pixels of ``image``).

        Returns:
            ``loss_region_distill``, ``loss_concept_contrastive`` and ``loss_img_txt_level``, as far
            as they are computed. Their plain sum is the loss.
        """
        batch = PretrainBatch.of(batched_inputs, self.device)
        images = normalize_images(
            batch.images, batch.sizes, self.pixels, channels="RGB", largest=batch.largest
        )
        boxes = self._regions(batch)
        first = self._first_maps(images.tensor)
        match = self._match(images.tensor, boxes, first)
        texts_ND = self._texts(batch)
        regions_RD, whole_ND = self._student(images.tensor, boxes, first)
        losses: dict[str, Tensor] = {}
        if match is not None:
            logits_RC = cosine_logits(regions_RD, self.concepts_CD, self.options.temperature)
            losses["loss_region_distill"] = region_distillation_loss(
                logits_RC, match.probs_RC, match.kept_R
            )
            losses["loss_concept_contrastive"] = concept_contrast_loss(
                logits_RC, match.labels_R, match.kept_R
            )
        if texts_ND is not None:
            losses["loss_img_txt_level"] = image_text_loss(
                whole_ND, texts_ND, self.options.temperature, gather=self.options.gather
            )
        self._statistics(batch, match)
        return losses

    def _regions(self, batch: PretrainBatch) -> list[Boxes]:
        """Sampled regions of every image; none without a pool."""
        if self.teacher_backbone is None:
            return [Boxes(torch.zeros(0, 4, device=self.device)) for _ in batch.sizes]
        if self.regions is None:
            proposals = batch.stored_proposals()
        else:
            source = self.regions
            if isinstance(source, OfflineRPN):
                source = source.with_range(batch.largest)
            with frozen_pass(self.device, bfloat16=self.options.frozen_bf16):
                proposals = source.propose(batch.images, batch.sizes)
        sampled = sample_regions(proposals, self.options.sampled_regions)
        return [copied_boxes(boxes) for boxes in sampled]

    def _first_maps(self, images_BCHW: Tensor) -> FirstMaps | None:
        """What student and teacher have in common; None = nothing, or nobody wants to know."""
        if self.teacher_backbone is None or not self.options.share_frozen:
            return None
        return self._shared_stages(self.backbone, self.teacher_backbone, images_BCHW)

    def _match(
        self, images_BCHW: Tensor, boxes: Sequence[Boxes], first: FirstMaps | None
    ) -> ConceptMatch | None:
        """What the teacher sees in the regions (specification 3.2)."""
        if self.teacher_backbone is None:
            return None
        with frozen_pass(self.device, bfloat16=self.options.frozen_bf16):
            res4_BCHW = run_encoder(self.teacher_backbone, images_BCHW, first)
            regions_RT = self.roi_heads(self.teacher_backbone, res4_BCHW, boxes, teacher=True)
            match = match_concepts(
                regions_RT,
                self.teacher_concepts_CT,
                self.options.threshold,
                temperature=self.options.teacher_temperature,
            )
        return ConceptMatch(
            probs_RC=copied(match.probs_RC),
            labels_R=copied(match.labels_R),
            kept_R=copied(match.kept_R),
            confident_R=copied(match.confident_R),
            confidence_R=copied(match.confidence_R),
        )

    def _texts(self, batch: PretrainBatch) -> Tensor | None:
        """Caption embeddings [N, D]."""
        if self.lang_encoder is None:
            return None
        with frozen_pass(self.device, bfloat16=False):
            return copied(self.lang_encoder(batch.tokens().to(self.device)))

    def _student(
        self, images_BCHW: Tensor, boxes: Sequence[Boxes], first: FirstMaps | None
    ) -> tuple[Tensor, Tensor]:
        """Region embeddings [R, D] and those of the whole images [N, D], with gradients."""
        res4_BCHW = run_encoder(self.backbone, images_BCHW, first)
        canvas = (images_BCHW.shape[-2], images_BCHW.shape[-1])
        whole = whole_images(canvas, len(boxes), self.device)
        if not self.options.image_text:
            return self.roi_heads(self.backbone, res4_BCHW, boxes), res4_BCHW.new_zeros(0)
        if self.teacher_backbone is None:
            return res4_BCHW.new_zeros(0), self.roi_heads(self.backbone, res4_BCHW, whole)
        if not self.options.joint_pass:
            regions_RD = self.roi_heads(self.backbone, res4_BCHW, boxes)
            return regions_RD, self.roi_heads(self.backbone, res4_BCHW, whole)
        both, counts = joined(boxes, whole)
        return separated(self.roi_heads(self.backbone, res4_BCHW, both), counts)

    @property
    def _fixed(self) -> tuple[str, ...]:
        """Parts that a checkpoint does not touch."""
        teacher = ("teacher_backbone",) if self.teacher_fixed else ()
        return (*teacher, *(_FROZEN[2:] if self.offline_fixed else ()))

    def _frozen(self) -> list[nn.Module]:
        found = [getattr(self, name, None) for name in _FROZEN]
        return [module for module in found if module is not None]
