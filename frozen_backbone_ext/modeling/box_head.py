"""Box and mask heads with norm and SiLU throughout (spec 2.4): 4conv1fc, 4conv2fc.

Shape suffixes: R regions, C channels, H and W rows and columns, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from frozen_backbone_ext.modeling.part_options import PartOptions, init_conv


class _NormFc(nn.Module):
    """Linear layer, norm over the regions, activation."""

    def __init__(self, in_features: int, out_features: int, parts: PartOptions) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, out_features)
        self.bn = parts.make_norm(out_features)
        self.activation = parts.make_activation()
        # uniform with a variance of a third over the inputs
        nn.init.uniform_(self.fc.weight, -(in_features**-0.5), in_features**-0.5)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x_RD: Tensor) -> Tensor:
        y_RD11 = self.fc(x_RD)[:, :, None, None]
        if len(y_RD11) < 2 and self.training and isinstance(self.bn, _BatchNorm):
            # one region has no variance: its statistics are those so far
            y_RD11 = F.batch_norm(
                y_RD11,
                self.bn.running_mean,
                self.bn.running_var,
                self.bn.weight,
                self.bn.bias,
                eps=self.bn.eps,
            )
        else:
            y_RD11 = self.bn(y_RD11)
        activated_RD: Tensor = self.activation(y_RD11[:, :, 0, 0])
        return activated_RD


@ROI_BOX_HEAD_REGISTRY.register()
class ConvFCNormHead(nn.Module):
    """3x3 convolutions, then linear layers, all with norm and activation.

    Args:
        input_shape: channels, height and width of the pooled regions.
        conv_dims: channels of the convolutions.
        fc_dims: widths of the linear layers; at least one.
        parts: norm and activation.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        parts: PartOptions | None = None,
    ) -> None:
        super().__init__()
        parts = parts or PartOptions()
        assert input_shape.channels
        channels = input_shape.channels
        self.convs = nn.Sequential()
        for dim in conv_dims:
            conv = nn.Conv2d(channels, dim, 3, padding=1, bias=parts.norm == "")
            init_conv(conv)
            self.convs.extend([conv, parts.make_norm(dim), parts.make_activation()])
            channels = dim
        features = channels * input_shape.height * input_shape.width
        self.fcs = nn.Sequential()
        for dim in fc_dims:
            self.fcs.append(_NormFc(features, dim, parts))
            features = dim
        self._width = features

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Translate ``MODEL.ROI_BOX_HEAD`` and ``MODEL.DETECTOR_PARTS``."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "parts": PartOptions.from_config(cfg),
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Width of the features."""
        return ShapeSpec(channels=self._width)

    def forward(self, pooled_RCHW: Tensor) -> Tensor:
        """Features [R, D] of pooled regions."""
        features_RD: Tensor = self.fcs(self.convs(pooled_RCHW).flatten(1))
        return features_RD


@ROI_MASK_HEAD_REGISTRY.register()
class ConvNormMaskHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head with this package's norm and activation, and its names of weights."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, parts: PartOptions, **options: Any) -> None:
        # a callable norm, so that eps and momentum are those of the other parts
        norm: Any = parts.make_norm if parts.norm else ""
        super().__init__(input_shape, **{**options, "conv_norm": norm})
        for conv in self.conv_norm_relus:
            conv.activation = parts.make_activation()
        self.deconv_relu = parts.make_activation()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Translate ``MODEL.ROI_MASK_HEAD`` and ``MODEL.DETECTOR_PARTS``."""
        options: dict[str, Any] = super().from_config(cfg, input_shape)
        options["parts"] = PartOptions.from_config(cfg)
        return options
