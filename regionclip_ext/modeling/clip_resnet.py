"""CLIP's "ModifiedResNet" as a detectron2 backbone (specification 2.1).

Parameter names are CLIP's. Batch norms are frozen. The last stage and the attention pool belong to
the backbone, but in a C4 detector only the ROI head runs them, on regions.

Legend: N images, C channels, R regions, S side of the attention pool's maps, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip_ext.modeling.attention_pool import AttentionPool
from regionclip_ext.modeling.encoder_shapes import ClipResNetShape, encoder_shape

EXPANSION = 4
STAGES = ("res2", "res3", "res4", "res5")


class Bottleneck(nn.Module):
    """1x1, 3x3, average pool instead of a stride, 1x1; the shortcut pools before its 1x1.

    Args:
        in_channels: of the input.
        planes: channels of the 3x3 convolution; a quarter of the output's.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out_channels = planes * EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                FrozenBatchNorm2d(out_channels),
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Output with ``4 * planes`` channels."""
        out = F.relu(self.bn1(self.conv1(x_NCHW)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            if self.stride > 1:
                x_NCHW = F.avg_pool2d(x_NCHW, self.stride)
            x_NCHW = self.downsample(x_NCHW)
        return F.relu(out + x_NCHW)


class ClipResNet(Backbone):
    """CLIP's image encoder without its head.

    Args:
        shape: sizes.
        out_features: some of ``res2`` ... ``res5``; later stages are not run by :meth:`forward`.
        freeze_at: stages without gradients: 1 the stem, 2 also ``layer1``, ... 5 all.
        attention_pool: build the pool; without it the encoder has no joint embedding.
    """

    def __init__(
        self,
        shape: ClipResNetShape,
        *,
        out_features: Sequence[str] = ("res4",),
        freeze_at: int = 0,
        attention_pool: bool = True,
    ) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = FrozenBatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(shape.layers):
            planes = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(Bottleneck(channels, planes, stride))
                channels = planes * EXPANSION
            self.add_module(f"layer{stage + 1}", layer)
        self.attnpool: AttentionPool | None = None
        if attention_pool:
            self.attnpool = AttentionPool(shape.pool_side, channels, shape.heads, shape.embed_dim)
        self._out_features = [name for name in STAGES if name in out_features]
        self._out_feature_channels = {
            name: width * EXPANSION * 2**stage for stage, name in enumerate(STAGES)
        }
        self._out_feature_strides = {name: 4 * 2**stage for stage, name in enumerate(STAGES)}
        self._freeze(freeze_at)

    def forward(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Maps of ``out_features``.

        Args:
            images_NCHW: RGB, normalised with CLIP's mean and deviation.
        """
        return self.later_stages(self.first_stages(images_NCHW))

    def first_stages(self, images_NCHW: Tensor, stages: int = 0) -> Tensor:
        """The stem, and as many stages behind it; :meth:`later_stages` goes on from there.

        Args:
            images_NCHW: as for :meth:`forward`.
            stages: 0 to 4.
        """
        x = F.relu(self.bn1(self.conv1(images_NCHW)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for number in range(1, stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def later_stages(self, x_NCHW: Tensor, stages: int = 0) -> dict[str, Tensor]:
        """Maps of ``out_features`` from what :meth:`first_stages` gave.

        Args:
            x_NCHW: its result.
            stages: how many it has run; ``out_features`` lie behind them, or are the last of them.
        """
        maps = {}
        for number, name in enumerate(STAGES, start=1):
            if number > stages:
                x_NCHW = self.get_submodule(f"layer{number}")(x_NCHW)
            if name in self._out_features and number >= stages:
                maps[name] = x_NCHW
                if len(maps) == len(self._out_features):
                    break
        return maps

    def last_stage(self, regions_RCHW: Tensor) -> Tensor:
        """``layer4`` on pooled ``res4`` maps of regions: half the side, twice the channels."""
        maps_RCSS: Tensor = self.get_submodule("layer4")(regions_RCHW)
        return maps_RCSS

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of ``out_features``."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }

    @property
    def last_channels(self) -> int:
        """Channels of ``layer4``."""
        return self._out_feature_channels["res5"]

    def _freeze(self, stages: int) -> None:
        stem = (self.conv1, self.conv2, self.conv3)
        layers = [self.get_submodule(f"layer{number}") for number in range(1, 5)]
        frozen: list[nn.Module] = []
        if stages >= 1:
            frozen = [*stem, *layers[: stages - 1]]
        for module in frozen:
            module.requires_grad_(False)


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipResNet:
    """The image encoder of a configuration; ``RESNETS.OUT_FEATURES`` names its maps."""
    return ClipResNet(
        encoder_shape(cfg),
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        attention_pool=cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER
        or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN",
    )


@BACKBONE_REGISTRY.register()
def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The image encoder with detectron2's FPN over it."""
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    return FPN(
        bottom_up=build_clip_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_teacher_backbone(cfg: CfgNode) -> ClipResNet:
    """The frozen teacher of pretraining: ``res4`` maps, last stage and attention pool."""
    teacher = ClipResNet(encoder_shape(cfg, teacher=True), out_features=("res4",))
    return teacher.eval().requires_grad_(False)
