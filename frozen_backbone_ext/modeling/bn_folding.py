"""Batch norms with fixed statistics as part of the convolution before them (spec 8.1).

Shape suffixes: O output channels, I input channels per group, K kernel side.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

logger = logging.getLogger(__name__)

BATCH_NORMS = (_BatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
"""Every kind of batch norm of the backbones that this project knows."""

_RELATIVE_ERROR = 1e-3


def frozen_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """float64 scale [O] and shift [O] of a batch norm in evaluation: ``x * scale + shift``."""
    part: Any = norm
    scale_O = (part.running_var.double() + part.eps).rsqrt()
    if part.weight is not None:
        scale_O = scale_O * part.weight.double()
    shift_O = -part.running_mean.double() * scale_O
    if part.bias is not None:
        shift_O = shift_O + part.bias.double()
    return scale_O, shift_O


def folded_weights(
    weight_OIKK: Tensor, bias_O: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the work of the norm too.

    Args:
        weight_OIKK: of a convolution with any number of groups.
        bias_O: None = none.
        norm: follows it; its running statistics are used.

    Returns:
        In the type of ``weight_OIKK``; computed in float64.
    """
    scale_O, shift_O = frozen_affine(norm)
    if bias_O is not None:
        shift_O = shift_O + bias_O.double() * scale_O
    folded_OIKK = weight_OIKK.double() * scale_O[:, None, None, None]
    return folded_OIKK.to(weight_OIKK.dtype), shift_O.to(weight_OIKK.dtype)


def fold_convolution(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Give ``conv`` the folded weight and a bias, in place."""
    weight_OIKK, bias_O = folded_weights(conv.weight.detach(), conv.bias, norm)
    conv.weight = nn.Parameter(weight_OIKK, requires_grad=False)
    conv.bias = nn.Parameter(bias_O.detach(), requires_grad=False)


@torch.no_grad()
def folded_copy(network: nn.Module, sample_NCHW: Tensor) -> tuple[nn.Module, int]:
    """A copy of a network in which every norm that directly follows a convolution is folded away.

    The pairs are found by running the network once, so that it need not be of a known kind, and
    the copy must give the same maps; where it does not, the copy is left unfolded.

    Args:
        network: in evaluation mode; not changed.
        sample_NCHW: a small batch that it can read.

    Returns:
        The copy, and how many norms were folded.
    """
    copied: nn.Module = copy.deepcopy(network)
    expected = _maps(copied(sample_NCHW))
    pairs = _pairs(copied, sample_NCHW)
    names = {module: name for name, module in copied.named_modules()}
    for conv, norm in pairs:
        fold_convolution(conv, norm)
        _replace(copied, names[norm], _rest(norm))
    folded = len(pairs)
    for module in copied.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, BATCH_NORMS):
            fold_convolution(module, module.norm)
            module.norm = None
            folded += 1
    for name, map_NCHW in _maps(copied(sample_NCHW)).items():
        error = (map_NCHW - expected[name]).abs().max()
        if not error <= _RELATIVE_ERROR * expected[name].abs().max().clamp(min=1e-6):
            logger.warning("batch norms are not folded: map %s would change by %g", name, error)
            return copy.deepcopy(network), 0
    return copied, folded


def _pairs(network: nn.Module, sample_NCHW: Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """(convolution, norm) where the norm reads what the convolution, run once, gave."""
    made: list[tuple[Tensor, nn.Conv2d]] = []
    runs: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        runs[module] = runs.get(module, 0) + 1
        assert isinstance(module, nn.Conv2d)
        made.append((output, module))

    def before_norm(module: nn.Module, inputs: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        pairs.extend((conv, module) for output, conv in made if output is inputs[0])

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if getattr(module, "norm", None) is None:
                hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, BATCH_NORMS):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        network(sample_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(runs[module] == 1 for module in pair)]


def _rest(norm: nn.Module) -> nn.Module:
    """What a folded norm still does: timm's fused norms contain the activation."""
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    network.get_submodule(parent).add_module(leaf, module)


def _maps(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, dict):
        return dict(output)
    return {str(number): map_NCHW for number, map_NCHW in enumerate(output)}
