"""Freezing as a property that any backbone can have (spec 1, 9).

The trunk stays where it is and its tensors keep their names; its class becomes a subclass of its
own (:mod:`frozen_backbone_ext.modeling.subclassing`). Whoever builds the model without this, such
as detectron2's DefaultPredictor, can load its checkpoints.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ext_common.errors import WeightsError
from frozen_backbone_ext.modeling.adapter_norms import AffineOnTop, OwnNorm
from frozen_backbone_ext.modeling.adapters import Adapter
from frozen_backbone_ext.modeling.fast_trunk import FastOptions, FastTrunk, private_copy
from frozen_backbone_ext.modeling.feature_cache import FeatureCache
from frozen_backbone_ext.modeling.subclassing import extend, restore
from frozen_backbone_ext.modeling.trunk import HASH_BUFFER, trunk_hash

logger = logging.getLogger(__name__)


@dataclass
class FreezeState:
    """What a frozen trunk remembers.

    Args:
        options: of the fast copy.
        expected_hash: first digits that the weights' hash must have; empty = any.
        built_hash: of the weights that the trunk was built with.
        has_adapters: parts of the trunk are trained.
        fast: the copy, once made.
        cache_folder: for maps of pictures that come again; empty = none.
        cache: it, once used.
    """

    options: FastOptions = field(default_factory=FastOptions)
    expected_hash: str = ""
    built_hash: str = ""
    has_adapters: bool = False
    fast: FastTrunk | None = None
    cache_folder: str = ""
    cache: FeatureCache | None = None

    def forget(self) -> None:
        """Weights were loaded, moved or converted."""
        self.fast = None
        self.cache = None


class FrozenTrunk(nn.Module):
    """Mixin of a trunk that never changes: evaluation mode, no gradients, no graph.

    Adapters in it are trained all the same; what comes before the first one has no graph either,
    since neither pictures nor weights need a gradient.
    """

    _frozen: FreezeState

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Adapters follow ``mode``; everything else stays in evaluation mode."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, OwnNorm):
                norm: Any = module
                norm.adapter_norm.train(mode)
            elif isinstance(module, Adapter):
                module.train(mode)
        return self

    def forward(self, images_NCHW: Tensor) -> Any:
        """Feature maps that nothing can be traced back from, unless there are adapters."""
        state = self._frozen
        if state.has_adapters:
            return super().forward(images_NCHW)
        with torch.no_grad():
            if not state.cache_folder:
                return self.compute(images_NCHW)
            if state.cache is None:
                kind = torch.get_autocast_dtype(images_NCHW.device.type)
                mixed = torch.is_autocast_enabled(images_NCHW.device.type)
                identity = f"{trunk_hash(self)} {state.options} {kind if mixed else ''}"
                state.cache = FeatureCache(state.cache_folder, identity)
            return state.cache(images_NCHW, self.compute)

    def compute(self, images_NCHW: Tensor) -> Any:
        """The maps by the trunk itself or its fast copy."""
        state = self._frozen
        if state.options.plain or images_NCHW.device.type == "meta":
            return super().forward(images_NCHW)
        if state.fast is None:
            state.fast = FastTrunk(plain_copy(self), images_NCHW[:1], state.options)
        return state.fast(images_NCHW)

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """Moved or converted weights need another copy."""
        self._frozen.forget()
        return super()._apply(*arguments, **options)


def freeze_trunk(
    trunk: nn.Module,
    options: FastOptions | None = None,
    *,
    expected_hash: str = "",
    cache_folder: str = "",
) -> FrozenTrunk:
    """Freeze a network in place: weights, statistics, dropout and stochastic depth.

    Args:
        trunk: its adapters, if it has some, stay trainable.
        options: how it computes; without adapters only.
        expected_hash: first digits of the hash that its weights must have after loading.
        cache_folder: keep maps there, for pictures that come again pixel by pixel.
    """
    built = "" if any(t.is_meta for t in trunk.state_dict().values()) else trunk_hash(trunk)
    trunk.requires_grad_(False)
    adapters = [m for m in trunk.modules() if isinstance(m, Adapter)]
    for module in trunk.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)
        elif isinstance(module, OwnNorm | AffineOnTop):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_("adapter" in name)
    if adapters and options is not None and not options.plain:
        logger.warning("a trunk with adapters is trained: it computes in the ordinary way")
    trunk.__dict__["_frozen"] = FreezeState(
        options or FastOptions(),
        expected_hash.lower(),
        built,
        bool(adapters),
        cache_folder=cache_folder,
    )
    frozen = extend(trunk, FrozenTrunk)
    frozen.register_load_state_dict_post_hook(_after_loading)
    frozen.train(trunk.training)
    return frozen


def keep_out_of_checkpoints(trunk: FrozenTrunk) -> None:
    """Give a trunk the buffer with its hash, by which a checkpoint without it knows it."""
    trunk.register_buffer(HASH_BUFFER, torch.zeros(32, dtype=torch.uint8))


def plain_copy(trunk: FrozenTrunk) -> nn.Module:
    """An ordinary module with the same weights, in evaluation mode."""
    fast, trunk._frozen.fast = trunk._frozen.fast, None
    try:
        copied = private_copy(trunk)
    finally:
        trunk._frozen.fast = fast
    del copied.__dict__["_frozen"]
    restore(copied, FrozenTrunk)
    plain: nn.Module = copied.eval()
    return plain


def state_without_trunk(model: nn.Module, name: str, trunk: FrozenTrunk) -> dict[str, Tensor]:
    """The model's state dict without the trunk's tensors, with their hash instead."""
    state = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith(f"{name}.") or "adapter" in key.removeprefix(f"{name}.")
    }
    digest = bytearray.fromhex(trunk_hash(trunk))
    state[f"{name}.{HASH_BUFFER}"] = torch.frombuffer(digest, dtype=torch.uint8).clone()
    return state


def _after_loading(module: nn.Module, incompatible: object) -> None:
    """Take a new fast copy, and see that the weights are those that are expected.

    Raises:
        WeightsError: they are others.
    """
    assert isinstance(module, FrozenTrunk)
    module._frozen.forget()
    stored = getattr(module, HASH_BUFFER, None)
    recorded = "" if stored is None or not bool(stored.any()) else bytes(stored.tolist()).hex()
    for expected, source in (
        (recorded, "the checkpoint was trained on"),
        (module._frozen.expected_hash, "MODEL.BACKBONE_FREEZE.HASH asks for"),
    ):
        if not expected:
            continue
        found = trunk_hash(module)
        if not found.startswith(expected):
            raise WeightsError(
                f"the frozen weights have the hash {found[:16]}, {source} {expected[:16]}",
                where="MODEL.BACKBONE_FREEZE",
                fix="give the weights that the detector was trained on",
            )


def trained_norms(trunk: nn.Module) -> list[str]:
    """Names of batch norms that would change in a training step; none in a frozen trunk."""
    return [
        name
        for name, module in trunk.named_modules()
        if isinstance(module, _BatchNorm) and module.training and "adapter" not in name
    ]
