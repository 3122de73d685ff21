"""Embeddings of regions: pooled maps through an encoder's last stage and attention pool.

Legend: N images, R regions of all of them, C channels, H, W cells of the ``res4`` map, D joint
embedding. Source: RegionCLIP specification 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from regionclip_ext.modeling.clip_resnet import ClipResNet

_STRIDE = 16  # of the res4 map


@ROI_HEADS_REGISTRY.register()
class PretrainRes5ROIHeads(nn.Module):
    """Pools regions for student and teacher; has no parameters, as the encoders own theirs.

    Args:
        resolution: cells per side of the student's regions; 14 for RN50, 18 for RN50x4.
        teacher_resolution: of the teacher's.
        pooler_type: as detectron2 names them.
        sampling_ratio: as detectron2 has it; 0 = by the region's size.
    """

    @configurable
    def __init__(
        self,
        *,
        resolution: int = 14,
        teacher_resolution: int = 14,
        pooler_type: str = "ROIAlignV2",
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__()
        common = {"scales": (1 / _STRIDE,), "sampling_ratio": sampling_ratio}
        self.pooler = ROIPooler(resolution, pooler_type=pooler_type, **common)
        self.teacher_pooler = ROIPooler(teacher_resolution, pooler_type=pooler_type, **common)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec] | None = None
    ) -> dict[str, Any]:
        """Translate config keys."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "resolution": head.POOLER_RESOLUTION,
            "teacher_resolution": cfg.MODEL.CLIP.TEACHER_POOLER_RESOLUTION,
            "pooler_type": head.POOLER_TYPE,
            "sampling_ratio": head.POOLER_SAMPLING_RATIO,
        }

    def forward(
        self,
        encoder: ClipResNet,
        res4_NCHW: Tensor,
        boxes: Sequence[Boxes],
        *,
        teacher: bool = False,
    ) -> Tensor:
        """Embeddings [R, D] of the boxes of all images in order, un-normalised.

        Args:
            encoder: student or teacher, with an attention pool.
            res4_NCHW: its map.
            boxes: per image, XYXY pixels of the padded batch.
            teacher: pool as the teacher does.
        """
        assert encoder.attnpool is not None
        pooler = self.teacher_pooler if teacher else self.pooler
        pooled_RCSS = pooler([res4_NCHW], list(boxes))
        embeddings_RD: Tensor = encoder.attnpool(encoder.last_stage(pooled_RCSS))
        return embeddings_RD


def whole_images(canvas: tuple[int, int], count: int, device: torch.device) -> list[Boxes]:
    """One box per image: the whole padded batch, as in the original (pitfall 6).

    Args:
        canvas: (height, width) of the batch.
        count: images.
        device: where the boxes go.
    """
    box_14 = torch.tensor([[0.0, 0.0, canvas[1], canvas[0]]], device=device)
    return [Boxes(box_14) for _ in range(count)]


def joined(regions: Sequence[Boxes], whole: Sequence[Boxes]) -> tuple[list[Boxes], list[int]]:
    """Per image its regions and then the whole image, and how many rows each image has."""
    both = [Boxes.cat([first, second]) for first, second in zip(regions, whole, strict=True)]
    return both, [len(boxes) for boxes in both]


def separated(embeddings_RD: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Embeddings of the regions [R - N, D] and of the whole images [N, D], from joined rows."""
    parts = embeddings_RD.split(list(counts))
    return torch.cat([part[:-1] for part in parts]), torch.cat([part[-1:] for part in parts])
