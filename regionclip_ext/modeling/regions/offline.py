"""Regions of a frozen detector: its backbone and RPN, and nothing else of it (specification 2.5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import ImageList, Instances
from torch import nn

from ext_common.config import load_config
from ext_common.errors import ConfigError
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images
from regionclip_ext.modeling.regions.source import Images, Sizes

_WHERE = "MODEL.CLIP.OFFLINE_RPN_CONFIG"


@dataclass(frozen=True)
class OfflineRPN:
    """A :class:`~regionclip_ext.modeling.regions.source.RegionSource` over two frozen modules.

    No module itself: the model registers ``backbone`` and ``proposal_generator`` under their
    published names (``offline_backbone``, ``offline_proposal_generator``) and keeps them in
    evaluation mode with :meth:`freeze`.

    Attributes:
        backbone: detectron2 backbone.
        proposal_generator: detectron2 RPN.
        pixels: what the backbone was trained on.
        channels: order of the channels of the pictures given.
        largest: value of a white pixel of the pictures given, 1 or 255.
    """

    backbone: Any
    proposal_generator: Any
    pixels: PixelFormat
    channels: str = "RGB"
    largest: float = 255.0

    def propose(self, images: Images, image_sizes: Sizes) -> list[Instances]:
        """Best proposals after NMS, by falling objectness."""
        with torch.no_grad():
            batch = self.normalize(images, image_sizes)
            features = self.backbone(batch.tensor)
            proposals, _ = self.proposal_generator(batch, features, None)
        found: list[Instances] = proposals
        return found

    def normalize(self, images: Images, image_sizes: Sizes) -> ImageList:
        """The batch as the backbone takes it."""
        return normalize_images(
            images,
            image_sizes,
            self.pixels,
            channels=self.channels,
            largest=self.largest,
            divisibility=self.backbone.size_divisibility,
        )

    def freeze(self) -> None:
        """Evaluation mode and no gradients, however the model around it is switched."""
        for module in (self.backbone, self.proposal_generator):
            module.eval().requires_grad_(False)

    def with_range(self, largest: float) -> OfflineRPN:
        """The same for pictures with other values."""
        return dataclasses.replace(self, largest=largest)


def build_offline_rpn(cfg: CfgNode, *, top_k: int | None = None) -> OfflineRPN:
    """The offline branch of a configuration, with random weights.

    Args:
        cfg: complete configuration.
        top_k: proposals kept per image; None = ``OFFLINE_RPN_POST_NMS_TOPK_TEST``, or what the
            branch's own file says.

    Raises:
        ConfigError: no file, or one without an RPN.
    """
    branch = offline_config(cfg, top_k=top_k)
    backbone = build_backbone(branch)
    generator: nn.Module | None = build_proposal_generator(branch, backbone.output_shape())
    if generator is None:
        raise ConfigError(
            "the offline branch has no proposal generator",
            where=_WHERE,
            fix="name a detector with MODEL.PROPOSAL_GENERATOR.NAME RPN",
        )
    offline = OfflineRPN(
        backbone=backbone,
        proposal_generator=generator,
        pixels=PixelFormat(
            branch.INPUT.FORMAT, tuple(branch.MODEL.PIXEL_MEAN), tuple(branch.MODEL.PIXEL_STD)
        ),
        channels=cfg.INPUT.FORMAT,
    )
    offline.freeze()
    return offline


def offline_config(cfg: CfgNode, *, top_k: int | None = None) -> CfgNode:
    """The configuration of the offline branch with the overrides of ``MODEL.CLIP``.

    Raises:
        ConfigError: no file is named, it is missing, has an unknown key, or no proposal is kept.
    """
    clip = cfg.MODEL.CLIP
    if not clip.OFFLINE_RPN_CONFIG:
        raise ConfigError(
            "regions of an RPN need a detector",
            where=_WHERE,
            fix="name its YAML file, or set MODEL.CLIP.CROP_REGION_TYPE GT",
        )
    if not Path(clip.OFFLINE_RPN_CONFIG).is_file():
        raise ConfigError(
            f"no such file: {clip.OFFLINE_RPN_CONFIG}",
            where=_WHERE,
            fix="paths are relative to the folder that the command is run in",
        )
    branch = load_config(clip.OFFLINE_RPN_CONFIG, list(clip.OFFLINE_RPN_OPTS))
    if clip.OFFLINE_RPN_LSJ_PRETRAINED:
        branch.MODEL.BACKBONE.FREEZE_AT = 0
        branch.MODEL.RESNETS.NORM = branch.MODEL.FPN.NORM = "SyncBN"
        branch.MODEL.RPN.CONV_DIMS = [-1, -1]
    if clip.OFFLINE_RPN_NMS_THRESH is not None:
        branch.MODEL.RPN.NMS_THRESH = float(clip.OFFLINE_RPN_NMS_THRESH)
    kept = clip.OFFLINE_RPN_POST_NMS_TOPK_TEST if top_k is None else top_k
    if kept is not None:
        if kept < 1:
            name = "OFFLINE_RPN_POST_NMS_TOPK_TEST" if top_k is None else "PRETRAIN_RPN_REGIONS"
            raise ConfigError(
                f"{kept} proposals are kept",
                where=f"MODEL.CLIP.{name}",
                fix="1 or more; null for what the branch's own file says",
            )
        branch.MODEL.RPN.POST_NMS_TOPK_TEST = int(kept)
    branch.MODEL.DEVICE = cfg.MODEL.DEVICE
    return branch
