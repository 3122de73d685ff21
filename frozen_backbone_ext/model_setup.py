"""What ``MODEL.BACKBONE_FREEZE`` and adapters do to a built model, of any package."""

from __future__ import annotations

from dataclasses import replace

from detectron2.config import CfgNode
from torch import nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import ConfigError, WeightsError
from ext_common.modeling.timm_backbone import TimmBackbone
from ext_common.registries import MODEL_SETUP_REGISTRY
from ext_common.stored_weights import read_weights
from ext_common.weights_match import match_weights, permit
from frozen_backbone_ext.modeling.adapters import Adapter
from frozen_backbone_ext.modeling.fast_trunk import FastOptions
from frozen_backbone_ext.modeling.freezing import (
    FrozenTrunk,
    freeze_trunk,
    keep_out_of_checkpoints,
)
from frozen_backbone_ext.modeling.subclassing import extend
from frozen_backbone_ext.modeling.trunk import HASH_BUFFER, find_trunk, trunk_hash
from frozen_backbone_ext.pixel_statistics import AUTO, check_pixels

POLICIES = ("", "trunk")
# of the trunk in files of: a detector with a neck, a detector without, CLIP
_PREFIXES = ("backbone.bottom_up.", "backbone.", "visual.")
ADAPTER_WEIGHTS = ("*.adapter.*", "*.adapter_norm.*", "*.adapter_scale", "*.adapter_shift")
"""Names of tensors that a plain backbone's weight file does not have."""


@MODEL_SETUP_REGISTRY.register()
def set_up_backbone(cfg: CfgNode, model: nn.Module) -> None:
    """Freeze the trunk as ``MODEL.BACKBONE_FREEZE`` says; let weight files lack adapters.

    Raises:
        ConfigError: an unknown policy, or a model without a backbone.
        WeightsError: ``MODEL.BACKBONE_FREEZE.WEIGHTS`` cannot be used.
    """
    options = cfg.MODEL.BACKBONE_FREEZE
    if any(isinstance(module, Adapter) for module in model.modules()):
        _allow_gaps(model, *ADAPTER_WEIGHTS)
    if options.POLICY not in POLICIES:
        raise ConfigError(
            f"unknown policy {options.POLICY!r}",
            where="MODEL.BACKBONE_FREEZE.POLICY",
            fix="trunk, or empty for none",
        )
    if not options.POLICY and not options.WEIGHTS:
        return
    name, trunk = find_trunk(model)
    if options.PIXELS == AUTO:
        check_pixels(cfg)  # whoever builds from the file alone has not filled them in
    if options.POLICY:
        trunk = _frozen(cfg, model, trunk)
    if options.WEIGHTS:
        load_trunk(trunk, options.WEIGHTS)
        _allow_gaps(model, f"{name}.*")


def _frozen(cfg: CfgNode, model: nn.Module, trunk: nn.Module) -> FrozenTrunk:
    options = cfg.MODEL.BACKBONE_FREEZE
    fast = FastOptions(
        fold_bn=options.FOLD_BN,
        dtype=options.DTYPE,
        channels_last=options.CHANNELS_LAST,
        compile=options.COMPILE,
    )
    frozen = freeze_trunk(
        trunk, fast, expected_hash=options.HASH, cache_folder=options.CACHE_FOLDER
    )
    if not options.SAVE:
        keep_out_of_checkpoints(frozen)
        _allow_gaps(model, f"*{HASH_BUFFER}")
    return frozen


def load_trunk(trunk: nn.Module, path: str) -> None:
    """Load a trunk's weights from a file of its own, or out of a detector's or CLIP's.

    Args:
        trunk: changed in place.
        path: of a file that covers it; what else is in it is left out.

    Raises:
        WeightsError: it cannot be read, or lacks a tensor of the trunk.
    """
    optional = (*ADAPTER_WEIGHTS, HASH_BUFFER)
    tensors = read_weights(path).tensors
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in tensors)), "")
    if not prefix:
        load_model_weights(trunk, path, allow_partial=optional)
        return
    stored = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    own = trunk.state_dict(keep_vars=True)
    found, pairs = match_weights(stored, own, by_suffix=False)
    report = permit(replace(found, source=path, unexpected=()), optional)
    if not report.complete or not pairs:
        raise WeightsError(f"does not fit the trunk: {report.problems()}", where=path)
    trunk.load_state_dict({**trunk.state_dict(), **{k: stored[v] for k, v in pairs.items()}})


def frozen_trunk(model: nn.Module) -> FrozenTrunk | None:
    """The frozen trunk of a model, if it has one."""
    found = [module for module in model.modules() if isinstance(module, FrozenTrunk)]
    return found[0] if found else None


def has_own_weights(trunk: FrozenTrunk, cfg: CfgNode) -> bool:
    """Whether weights were loaded into the trunk, or it brought some when it was built."""
    if cfg.MODEL.TIMM.PRETRAINED and isinstance(trunk, TimmBackbone):
        return True
    return trunk_hash(trunk) != trunk._frozen.built_hash


class AllowsGaps(nn.Module):
    """Mixin of a model whose weight files may lack more than the model itself says."""

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Patterns of names (``checkpoint.load_model_weights``)."""
        own: tuple[str, ...] = getattr(super(), "optional_weights", ())
        return (*own, *self.__dict__["_gaps"])


def _allow_gaps(model: nn.Module, *patterns: str) -> None:
    """Names that weight files may lack."""
    model.__dict__["_gaps"] = (*model.__dict__.get("_gaps", ()), *patterns)
    extend(model, AllowsGaps)
