"""A pretraining model with random weights, its batch, and the plain computation of a step.

Shapes: N images, R regions of all, C concepts, D joint embedding, L tokens, T = S * S + 1 places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Results
from ext_common.modeling.text_tower import TextTower, TextTowerShape
from regionclip_ext.modeling.attention_pool import AttentionPool
from regionclip_ext.modeling.clip_resnet import ClipResNet
from regionclip_ext.modeling.clip_tokens import tokenize
from regionclip_ext.modeling.encoder_shapes import SHAPES, ClipResNetShape
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images
from regionclip_ext.modeling.pretrain.concept_pools import ConceptPools
from regionclip_ext.modeling.pretrain.meta_arch import PretrainFastRCNN
from regionclip_ext.modeling.pretrain.options import PretrainOptions
from regionclip_ext.modeling.pretrain.region_head import PretrainRes5ROIHeads, whole_images
from regionclip_ext.modeling.regions.drawn import RandomRegions
from regionclip_ext.modeling.regions.offline import OfflineRPN
from regionclip_ext.modeling.regions.source import Images, as_regions
from regionclip_ext.modeling.regions.source import Sizes as ImageSizes

CLIP_PIXELS = PixelFormat(
    "RGB", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
RPN_PIXELS = PixelFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
TEMPERATURE = 0.01
CAPTIONS = ("a man riding a wave on top of a surfboard", "two dogs on a couch near a window")
GRADIENTS = ("layer4.0.conv1.weight", "attnpool.c_proj.weight")
TINY = ClipResNetShape((1, 1, 1, 1), 8, 4, 16, 64, 16)


@dataclass(frozen=True)
class TimedRPN:
    """Runs an RPN for its time and gives other regions: with random weights it finds few.

    Args:
        rpn: the branch.
        found: what it would have found.
    """

    rpn: OfflineRPN
    found: list[Instances]

    def propose(self, images: Images, image_sizes: ImageSizes) -> list[Instances]:
        """The stored regions, whatever the pictures."""
        self.rpn.propose(images, image_sizes)
        return self.found


@dataclass(frozen=True)
class Sizes:
    """How large a step is.

    Args:
        encoder: of student and teacher.
        image: (height, width) of the pictures; the second is a little lower.
        regions: of each.
        concepts: C.
        text_layers: of the text encoder.
        rpn_width: channels behind the stem of the RPN's ResNet-50; 64 is the usual one.
    """

    encoder: ClipResNetShape = SHAPES["RN50"]
    image: tuple[int, int] = (480, 640)
    regions: int = 100
    concepts: int = 4764
    text_layers: int = 12
    rpn_width: int = 64


class PretrainingStep:
    """One batch of two pictures with regions; the RPN is run for its time.

    Args:
        device: where.
        sizes: how large.
    """

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        torch.manual_seed(0)
        encoder = sizes.encoder
        student = ClipResNet(encoder, freeze_at=2)
        teacher = ClipResNet(encoder)
        teacher.load_state_dict(student.state_dict())
        _train_a_little(student)
        text = TextTower(
            TextTowerShape(
                embed_dim=encoder.embed_dim,
                width=encoder.text_width,
                heads=max(encoder.text_width // 64, 1),
                layers=sizes.text_layers,
            )
        )
        pool_CD = torch.randn(sizes.concepts, encoder.embed_dim)
        rpn = _offline_rpn(sizes)
        self.model = PretrainFastRCNN(
            backbone=student,
            roi_heads=PretrainRes5ROIHeads(
                resolution=encoder.roi_side, teacher_resolution=encoder.roi_side
            ),
            pixels=CLIP_PIXELS,
            options=PretrainOptions(sampled_regions=None, temperature=TEMPERATURE),
            teacher=teacher,
            lang_encoder=text,
            pools=ConceptPools(pool_CD, pool_CD),
        ).to(device)
        for module in (rpn.backbone, rpn.proposal_generator):
            module.to(device)
        rpn.freeze()
        height, width = sizes.image
        self.images = [_patches(height - 16 * n, width).to(device) for n in range(2)]
        self.sizes = [(int(i.shape[1]), int(i.shape[2])) for i in self.images]
        self.tokens_NL = tokenize(CAPTIONS)
        regions = RandomRegions(sizes.regions).propose(self.images, self.sizes)
        self.stored = [as_regions(r.proposal_boxes.tensor, r.image_size) for r in regions]
        self.rpn = TimedRPN(rpn, self.stored)
        self._know_the_regions()

    def _know_the_regions(self) -> None:
        """Make the first concepts what the teacher sees, or random weights give all one label."""
        model = self.model
        assert model.teacher_backbone is not None
        images = normalize_images(self.images, self.sizes, CLIP_PIXELS, channels="RGB").tensor
        with torch.no_grad():
            maps = model.teacher_backbone(images)["res4"]
            boxes = [found.proposal_boxes for found in self.stored]
            seen_RD = self._embed(model.teacher_backbone, maps, boxes)
            # random networks see nearly the same everywhere: what differs tells regions apart
            common_D = F.normalize(seen_RD.mean(dim=0), dim=0)
            for pool_CD in (model.concepts_CD, model.teacher_concepts_CT):
                pool_CD[: len(seen_RD)] = seen_RD[: len(pool_CD)]
                pool_CD -= (pool_CD @ common_D)[:, None] * common_D

    def ours(self) -> Results:
        """The model on stored regions."""
        self.model.zero_grad()
        batch = [
            {"image": image, "tokens": tokens, "proposals": regions}
            for image, tokens, regions in zip(self.images, self.tokens_NL, self.stored, strict=True)
        ]
        with EventStorage(1):
            losses = self.model(batch)
        return self._results(losses)

    def naive(self) -> Results:
        """The specification, part after part (3.1 to 3.3)."""
        self.model.zero_grad()
        model = self.model
        self.rpn.propose(self.images, self.sizes)
        images = normalize_images(self.images, self.sizes, CLIP_PIXELS, channels="RGB").tensor
        probs_RC = self.plain_teacher(images)
        texts_ND = self.plain_texts()
        confidence_R, labels_R = probs_RC.max(dim=1)
        kept_R = confidence_R > model.options.threshold
        kept_R = kept_R | ~kept_R.any()
        regions_RD, whole_ND = self.plain_student(images)
        regions_KD, labels_K = regions_RD[kept_R], labels_R[kept_R]
        concepts_CD = _unit(model.concepts_CD)
        logits_KC = regions_KD @ concepts_CD.T / TEMPERATURE
        kinds_KK = (labels_K[:, None] == labels_K).float()
        near_KK = (regions_KD @ concepts_CD[labels_K].T / TEMPERATURE).softmax(dim=1)
        pairs_NN = whole_ND @ _unit(texts_ND).T / TEMPERATURE
        own_N = torch.arange(len(pairs_NN), device=images.device)
        return self._results(
            {
                "loss_region_distill": F.kl_div(
                    logits_KC.log_softmax(dim=1), probs_RC[kept_R], reduction="batchmean"
                ),
                "loss_concept_contrastive": -(kinds_KK * near_KK).sum(dim=1).log().mean(),
                "loss_img_txt_level": (
                    F.cross_entropy(pairs_NN, own_N) + F.cross_entropy(pairs_NN.T, own_N)
                )
                / 2,
            }
        )

    def plain_teacher(self, images_BCHW: Tensor) -> Tensor:
        """Soft labels of all regions [R, C]."""
        model = self.model
        assert model.teacher_backbone is not None
        with torch.no_grad():
            res4 = model.teacher_backbone(images_BCHW)["res4"]
            boxes = [found.proposal_boxes for found in self.stored]
            seen_RD = self._embed(model.teacher_backbone, res4, boxes)
            return (_unit(seen_RD) @ _unit(model.concepts_CD).T / 0.01).softmax(dim=1)

    def plain_texts(self) -> Tensor:
        """Caption embeddings [N, D], with their padding."""
        with torch.no_grad():
            tokens_NL = self.tokens_NL.to(self.images[0].device)
            features_ND: Tensor = self.model.lang_encoder(tokens_NL)
            return features_ND

    def plain_student(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of the regions [R, D], and in a second pass of whole images [N, D]."""
        student = self.model.backbone
        boxes = [found.proposal_boxes for found in self.stored]
        canvas = (images_BCHW.shape[2], images_BCHW.shape[3])
        whole = whole_images(canvas, len(boxes), images_BCHW.device)
        res4 = student(images_BCHW)["res4"]
        regions_RD = _unit(self._embed(student, res4, boxes))
        return regions_RD, _unit(self._embed(student, res4, whole))

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()

    def _embed(self, encoder: ClipResNet, res4: Tensor, boxes: Sequence[Boxes]) -> Tensor:
        maps = encoder.last_stage(self.model.roi_heads.pooler([res4], list(boxes)))
        assert encoder.attnpool is not None
        return all_queries(encoder.attnpool, maps)

    def _results(self, losses: dict[str, Tensor]) -> Results:
        # their sum: with random weights the contrast may be 0 up to rounding
        loss = torch.stack(list(losses.values())).sum()
        self.backward(loss)
        found = {"loss": loss.detach()}
        for name in GRADIENTS:
            gradient = self.model.backbone.get_parameter(name).grad
            assert gradient is not None
            found[name] = gradient.clone()
        return found


def all_queries(pool: AttentionPool, maps_NCSS: Tensor) -> Tensor:
    """The attention pool as the specification has it: every place asks, one answer is used."""
    x_TNC = maps_NCSS.flatten(2).permute(2, 0, 1)
    x_TNC = torch.cat([x_TNC.mean(dim=0, keepdim=True), x_TNC])
    x_TNC = x_TNC + pool.positional_embedding[:, None]
    found_TND, _ = F.multi_head_attention_forward(
        query=x_TNC,
        key=x_TNC,
        value=x_TNC,
        embed_dim_to_check=x_TNC.shape[2],
        num_heads=pool.heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )
    answer_ND: Tensor = found_TND[0]
    return answer_ND


def _offline_rpn(sizes: Sizes) -> OfflineRPN:
    """A ResNet-50 FPN detector's backbone and RPN."""
    from detectron2.modeling import build_backbone
    from detectron2.modeling.proposal_generator import build_proposal_generator

    from ext_common.config import get_config

    cfg = get_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = sizes.rpn_width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * sizes.rpn_width
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = sizes.rpn_width
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
    cfg.MODEL.FPN.OUT_CHANNELS = 4 * sizes.rpn_width
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.NMS_THRESH = 0.5
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = sizes.regions
    backbone = build_backbone(cfg)
    generator: Any = build_proposal_generator(cfg, backbone.output_shape())
    return OfflineRPN(backbone, generator, RPN_PIXELS)


def _patches(height: int, width: int) -> Tensor:
    """A picture of coloured patches, uint8 [3, H, W]: noise would look the same everywhere."""
    patches = 255 * torch.rand(1, 3, 6, 8)
    return F.interpolate(patches, (height, width), mode="bilinear")[0].to(torch.uint8)


def _train_a_little(student: ClipResNet) -> None:
    """Stand-in for training: equal networks would have a distillation loss of 0."""
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * parameter.std() * torch.randn_like(parameter)


def _unit(feats_ND: Tensor) -> Tensor:
    return F.normalize(feats_ND, dim=1)
