"""The norms around adapters: frozen, with a trained scale and shift, or trained anew (spec 4).

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.bn_folding import BATCH_NORMS
from frozen_backbone_ext.modeling.subclassing import extend, restore

NORM_CHOICES = ("frozen", "affine", "own")


class _FrozenNorm(torch.autograd.Function):
    """A norm with constants: the fused forward, and a backward that keeps the scale only.

    detectron2's FrozenBatchNorm2d computes with other operators where a gradient is needed, and
    would not give the frozen network's numbers to the last bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input_NCHW: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        eps: float,
    ) -> Tensor:
        scale_C = weight_C * (var_C + eps).rsqrt()
        ctx.save_for_backward(scale_C)
        return F.batch_norm(input_NCHW, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale_C,) = ctx.saved_tensors
        gradient_NCHW = gradients[0] * scale_C.to(gradients[0].dtype)[:, None, None]
        return gradient_NCHW, None, None, None, None, None


class FusedFrozenNorm(nn.Module):
    """Mixin for detectron2's FrozenBatchNorm2d: the same numbers with and without gradients."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        """The normalised map."""
        own: Any = self
        arguments = (own.running_mean, own.running_var, own.weight, own.bias, own.eps)
        normalised_NCHW: Tensor = _FrozenNorm.apply(input_NCHW, *arguments)
        return normalised_NCHW


class AffineOnTop(nn.Module):
    """Mixin for a norm with ``adapter_scale`` and ``adapter_shift``, both zero at first."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        """The frozen norm's result, scaled and shifted."""
        own: Any = self
        result_NCHW: Tensor = super().forward(input_NCHW)
        scale_C11 = 1 + own.adapter_scale[:, None, None]
        return result_NCHW * scale_C11 + own.adapter_shift[:, None, None]


class OwnNorm(nn.Module):
    """Mixin for a norm replaced by ``adapter_norm``, a batch norm that starts as the frozen one."""

    def forward(self, input_NCHW: Tensor) -> Tensor:
        """What the trained norm gives."""
        own: Any = self
        normalised_NCHW: Tensor = own.adapter_norm(input_NCHW)
        return normalised_NCHW

    def start_from_frozen(self) -> None:
        """Copy the frozen norm, unless this one has been trained."""
        own: Any = self
        norm = own.adapter_norm
        if int(norm.num_batches_tracked):
            return
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).copy_(getattr(own, name))


def fuse_frozen_norm(norm: nn.Module) -> None:
    """Make detectron2's frozen norm give the same bits with and without gradients."""
    if isinstance(norm, FrozenBatchNorm2d) and not isinstance(norm, AffineOnTop | OwnNorm):
        extend(norm, FusedFrozenNorm)


def adapt_norm(norm: nn.Module | None, kind: str) -> None:
    """Change the norm after an adapter in place.

    Args:
        norm: a batch norm, in evaluation mode later.
        kind: one of :data:`NORM_CHOICES`.

    Raises:
        ConfigError: an unknown kind, or a module that is no plain batch norm.
    """
    if kind not in NORM_CHOICES:
        raise ConfigError(
            f"unknown norm {kind!r}",
            where="MODEL.ADAPTERS.NORM",
            fix=f"one of {', '.join(NORM_CHOICES)}",
        )
    if kind == "frozen":
        return
    if not isinstance(norm, BATCH_NORMS) or hasattr(norm, "act"):
        raise ConfigError(
            f"{kind!r} after a {type(norm).__name__}",
            where="MODEL.ADAPTERS.NORM",
            fix="use frozen with this backbone",
        )
    part: Any = norm
    channels, device = part.num_features, part.running_mean.device
    fuse_frozen_norm(norm)
    if kind == "affine":
        for name in ("adapter_scale", "adapter_shift"):
            norm.register_parameter(name, nn.Parameter(torch.zeros(channels, device=device)))
        extend(norm, AffineOnTop)
        return
    norm.add_module("adapter_norm", nn.BatchNorm2d(channels, eps=part.eps).to(device))
    own = extend(norm, OwnNorm)
    own.start_from_frozen()
    own.register_load_state_dict_post_hook(_after_loading)


def _after_loading(module: nn.Module, incompatible: object) -> None:
    assert isinstance(module, OwnNorm)
    module.start_from_frozen()


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Write what was trained around norms into the norms themselves, in place."""
    for norm in list(network.modules()):
        part: Any = norm
        if isinstance(norm, AffineOnTop):
            part.weight.mul_(1 + part.adapter_scale)
            part.bias.mul_(1 + part.adapter_scale).add_(part.adapter_shift)
            del part.adapter_scale, part.adapter_shift
            restore(norm, AffineOnTop)
        elif isinstance(norm, OwnNorm):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(part, name).copy_(getattr(part.adapter_norm, name))
            del part.adapter_norm
            norm._load_state_dict_post_hooks.clear()
            restore(norm, OwnNorm)
