"""Residual adapters: small trained branches in a frozen backbone (spec 4; Rebuffi et al.).

Shape suffixes: N images, C channels, H and W rows and columns; O outputs, I inputs, K kernel side.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.adapter_norms import adapt_norm, fold_norms, fuse_frozen_norm
from frozen_backbone_ext.modeling.bn_folding import BATCH_NORMS
from frozen_backbone_ext.modeling.subclassing import extend, restore

FORMS = ("parallel", "series")


class Adapter(nn.Module):
    """The trained branch: a 1x1 convolution without bias that starts as zero.

    Args:
        conv: what it stands beside.
        form: ``parallel`` reads the convolution's input with its stride, ``series`` its output
            through a batch norm of its own.
    """

    def __init__(self, conv: nn.Conv2d, form: str = "parallel") -> None:
        super().__init__()
        if form not in FORMS:
            raise ConfigError(
                f"unknown form {form!r}",
                where="MODEL.ADAPTERS.FORM",
                fix=f"one of {', '.join(FORMS)}",
            )
        self.form = form
        parallel = form == "parallel"
        stride: Any = conv.stride if parallel else 1
        self.conv1x1 = nn.Conv2d(
            conv.in_channels if parallel else conv.out_channels,
            conv.out_channels,
            kernel_size=1,
            stride=stride,
            groups=conv.groups if parallel else 1,
            bias=False,
        )
        nn.init.zeros_(self.conv1x1.weight)
        self.bn = None if parallel else nn.BatchNorm2d(conv.out_channels)

    def forward(self, input_NCHW: Tensor, output_NCHW: Tensor) -> Tensor:
        """The convolution's output with the branch added, before its norm.

        Args:
            input_NCHW: what the convolution read.
            output_NCHW: what it gave.
        """
        if self.bn is None:
            added_NCHW: Tensor = self.conv1x1(input_NCHW)
        else:
            added_NCHW = self.conv1x1(self.bn(output_NCHW))
        return output_NCHW + added_NCHW


class WithAdapter(nn.Module):
    """Mixin for a convolution that has an ``adapter``."""

    adapter: Adapter

    def forward(self, input_NCHW: Tensor) -> Tensor:
        """As the convolution alone, with the adapter before its norm and activation."""
        own: Any = self
        if isinstance(self, Conv2d):  # detectron2's contains norm and activation
            output_NCHW = own._conv_forward(input_NCHW, own.weight, own.bias)
        else:
            output_NCHW = super().forward(input_NCHW)
        output_NCHW = self.adapter(input_NCHW, output_NCHW)
        for name in ("norm", "activation"):
            step = getattr(own, name, None)
            if step is not None:
                output_NCHW = step(output_NCHW)
        return output_NCHW


def add_adapter(conv: nn.Conv2d, form: str = "parallel") -> Adapter:
    """Give a convolution an adapter in place; the branch is 0 at first.

    Raises:
        ConfigError: an unknown form, or a parallel form around a convolution that does not keep
            the centre of its kernel on the pixel.
    """
    padding: Any = conv.padding
    sides = zip(padding, conv.dilation, conv.kernel_size, strict=False)
    centred = not isinstance(padding, str) and all(
        2 * margin == dilation * (side - 1) for margin, dilation, side in sides
    )
    if form == "parallel" and not centred:
        raise ConfigError(
            f"a parallel adapter around a convolution of kernel {conv.kernel_size} "
            f"and padding {conv.padding}",
            where="MODEL.ADAPTERS.FORM",
            fix="use series adapters with this backbone",
        )
    adapter = Adapter(conv, form).to(conv.weight.device)
    conv.add_module("adapter", adapter)
    extend(conv, WithAdapter)
    return adapter


@torch.no_grad()
def fold_adapters(network: nn.Module) -> int:
    """Add parallel adapters to the centre of their convolutions' kernels and remove them.

    Args:
        network: changed in place; afterwards its weights have the plain backbone's names.

    Returns:
        Number of adapters folded.

    Raises:
        ConfigError: a series adapter, which is no part of a convolution.
    """
    folded = 0
    for name, module in list(network.named_modules()):
        if not isinstance(module, WithAdapter):
            continue
        adapter = module.adapter
        if adapter.form != "parallel":
            raise ConfigError(
                f"{name}: a series adapter cannot be folded away",
                where="MODEL.ADAPTERS.FORM",
                fix="keep it, or train parallel adapters",
            )
        conv: Any = module
        middle_y, middle_x = (side // 2 for side in conv.kernel_size)
        conv.weight[:, :, middle_y, middle_x] += adapter.conv1x1.weight[:, :, 0, 0]
        del conv.adapter
        restore(conv, WithAdapter)
        folded += 1
    fold_norms(network)
    return folded


def stage_modules(backbone: nn.Module) -> dict[str, nn.Module]:
    """Stages by name: ``res2`` to ``res5`` or ``layer1`` to ``layer4`` of a ResNet, ``blocks.0`` to
    ``blocks.6`` of timm's EfficientNet.

    They are looked for in the backbone itself and in what it wraps (timm's models are at ``base``).
    """
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        parent, _, leaf = name.rpartition(".")
        numbered = parent.rpartition(".")[2] == "blocks" and leaf.isdigit()
        if leaf[:-1] in ("res", "layer") and leaf[-1:].isdigit():
            if any(True for _ in module.children()):
                found.setdefault(leaf, module)
        elif numbered and any(_places(block) for block in module.children()):
            found.setdefault(f"blocks.{leaf}", module)
    return found


def adapt_stages(
    backbone: nn.Module,
    stages: tuple[str, ...] = (),
    *,
    form: str = "parallel",
    norm: str = "frozen",
) -> list[Adapter]:
    """Put an adapter beside one convolution of every block of some stages.

    In a ResNet that is the 3x3 convolution (``conv2``). In an EfficientNet it is the 1x1
    convolution that ends a block: the one before it has a filter per channel, and a dense branch
    there would be larger than the network. A series adapter has a square of the block's outputs
    there; a parallel one would be as large as the convolution itself.

    Args:
        backbone: changed in place; the names of its own tensors stay.
        stages: names as in :func:`stage_modules`; empty = all.
        form: see :class:`Adapter`.
        norm: of the norm after the convolution: ``frozen``, ``affine`` (trained scale and shift on
            top) or ``own`` (a trained batch norm that starts as the frozen one).

    Returns:
        The adapters, in the backbone's order.

    Raises:
        ConfigError: a stage that the backbone does not have, or blocks of another kind.
    """
    known = stage_modules(backbone)
    unknown = [name for name in stages if name not in known]
    if unknown or not known:
        raise ConfigError(
            f"{', '.join(unknown) or 'no stage'} in {type(backbone).__name__}, whose stages are "
            f"{', '.join(known) or 'not those of a ResNet or EfficientNet'}",
            where="MODEL.ADAPTERS.STAGES",
            fix="name stages of the backbone; empty takes all",
        )
    adapters = []
    for name in stages or tuple(known):
        places = [place for m in known[name].modules() if (place := _places(m)) is not None]
        if not places:
            raise ConfigError(
                f"{name} has no blocks with a conv2",
                where="MODEL.ADAPTERS.STAGES",
                fix="adapters are for ResNets and EfficientNets",
            )
        for conv, after in places:
            adapters.append(add_adapter(conv, form))
            adapt_norm(after, norm)
    for module in backbone.modules():
        if isinstance(module, BATCH_NORMS):
            fuse_frozen_norm(module)
    return adapters


def _places(block: nn.Module) -> tuple[nn.Conv2d, nn.Module | None] | None:
    """The convolution of a block that gets an adapter, and the norm after it."""
    conv: Any = None
    if isinstance(_child(block, "conv_dw"), nn.Conv2d):  # a depthwise block of timm
        for name, norm in (("conv_pwl", "bn3"), ("conv_pw", "bn2")):
            conv = _child(block, name)
            if isinstance(conv, nn.Conv2d):
                return conv, _child(block, norm)
        return None
    conv = _child(block, "conv2")
    if not isinstance(conv, nn.Conv2d):
        return None
    inner = getattr(conv, "norm", None)
    return conv, inner if inner is not None else _child(block, "bn2")


def _child(module: nn.Module, name: str) -> nn.Module | None:
    child: nn.Module | None = getattr(module, name, None)
    return child
