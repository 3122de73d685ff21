"""timm models as feature extractors: names, options, local weights, and a check on a small picture."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import Format
from torch import nn

from ext_common.errors import ConfigError, WeightsError

logger = logging.getLogger(__name__)

RESNET50_IN21K = "resnet50_in21k"
"""ResNet-50 of the published detectors; weights come through MODEL.WEIGHTS (detic spec 1.1)."""
IN21K_CLASSES = 11221
"""Outputs of its unused ``fc``, which published checkpoints contain."""
CONVNEXT_TINY_21K = "convnext_tiny_21k"
"""Published name of ConvNeXt-T with ImageNet-22k weights."""

_KEY = "MODEL.TIMM.BASE_NAME"


def create_timm_model(
    name: str,
    *,
    out_levels: Sequence[int],
    pretrained: bool = False,
    weights_follow: bool = False,
    drop_path_rate: float | None = None,
    in_channels: int = 3,
    **model_options: Any,
) -> nn.Module:
    """A timm model that returns feature maps for images of any size divisible by its stride.

    Args:
        name: a timm model, ``resnet50_in21k`` (whole, with its unused ``fc``) or
            ``convnext_tiny_21k``.
        out_levels: 1-based positions in timm's ``feature_info``: [stem, layer1 .. layer4] for
            ResNets, the four stages for ConvNeXt and Swin (detic spec 1.1).
        pretrained: load timm's weights from the local cache. Nothing is downloaded.
        weights_follow: other weights are loaded into the model afterwards, so that a cache without
            timm's is only worth a warning.
        drop_path_rate: share of residual branches dropped in training; None = 0.2 for ConvNeXt
            tiny and small, 0.3 for other ConvNeXt, and timm's default for everything else.
        in_channels: channels of the image.
        model_options: passed to the model as they are.

    Raises:
        ConfigError: an unknown model (near names are suggested), a level it does not have, or a
            model that takes one image size only.
        WeightsError: ``pretrained`` without weights in the cache, or weights that do not fit.
    """
    if name == RESNET50_IN21K:
        return _resnet50_in21k(pretrained, in_channels, model_options)
    if name == CONVNEXT_TINY_21K:
        name = "convnext_tiny.fb_in22k"
    _check_name(name)
    levels = check_levels(out_levels)
    options: dict[str, Any] = {
        "features_only": True,
        "out_indices": tuple(level - 1 for level in levels),
        "in_chans": in_channels,
        **model_options,
    }
    rate = _default_drop_path(name) if drop_path_rate is None else drop_path_rate
    if rate is not None:
        options["drop_path_rate"] = rate
    weights = _pretrained_file(name, weights_follow) if pretrained else None
    try:
        model, options = _fit_to_any_size(name, options)
    except ConfigError:
        _check_has_level(name, levels[-1])
        raise
    return model if weights is None else _with_weights(name, weights, options)


def check_levels(out_levels: Sequence[int]) -> tuple[int, ...]:
    """The levels as a tuple.

    Raises:
        ConfigError: none, a level below 1, or levels that do not rise.
    """
    levels = tuple(out_levels)
    if not levels or levels[0] < 1 or list(levels) != sorted(set(levels)):
        raise ConfigError(
            f"levels {levels} are not rising numbers from 1",
            where="MODEL.TIMM.OUT_LEVELS",
            fix="for example (3, 4, 5)",
        )
    return levels


def _pretrained_file(name: str, weights_follow: bool) -> Path | None:
    try:
        return find_pretrained_file(name)
    except WeightsError as error:
        if not weights_follow:
            raise
        logger.warning("%s; MODEL.WEIGHTS must have them", error)
        return None


def find_pretrained_file(name: str) -> Path:
    """Where timm's weights of a model lie on this machine.

    Args:
        name: a timm model, optionally with a tag (``resnet18.a1_in1k``).

    Raises:
        WeightsError: timm has no weights for it, or they are not in the cache.
    """
    source = timm.get_pretrained_cfg(name)
    for path in _places(source):
        if path.is_file():
            return path
    if source is None or not (source.url or source.hf_hub_id):
        raise WeightsError(f"timm has no weights for {name}", fix="set MODEL.TIMM.PRETRAINED False")
    once = f"timm.create_model('{name}', pretrained=True)"
    raise WeightsError(
        f"weights of the timm model {name} are not on this machine",
        where="MODEL.TIMM.PRETRAINED",
        fix=f"run {once} once where there is a network and copy its cache (HF_HOME or TORCH_HOME), "
        "or set PRETRAINED False and give MODEL.WEIGHTS",
    )


def _places(source: Any) -> Iterator[Path]:
    """Files in which the weights may lie, best first."""
    if source is None:
        return
    if source.file:
        yield Path(source.file)
    if source.hf_hub_id:
        repo, _, revision = source.hf_hub_id.partition("@")
        names = ("model.safetensors", "pytorch_model.bin")
        for filename in (source.hf_hub_filename,) if source.hf_hub_filename else names:
            found = try_to_load_from_cache(repo, filename, revision=revision or None)
            if isinstance(found, str):
                yield Path(found)
    if source.url and not source.custom_load:  # such a file is in a format of its own
        yield Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(source.url).path).name


def _resnet50_in21k(pretrained: bool, in_channels: int, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        raise ConfigError(
            f"{RESNET50_IN21K} has no weights in timm",
            where="MODEL.TIMM.PRETRAINED",
            fix="set it False and give the converted weights in MODEL.WEIGHTS",
        )
    model: nn.Module = timm.create_model(
        "resnet50", num_classes=IN21K_CLASSES, in_chans=in_channels, **options
    )
    return model


def _default_drop_path(name: str) -> float | None:
    if not name.startswith("convnext"):
        return None
    return 0.2 if "tiny" in name or "small" in name else 0.3


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        own = [RESNET50_IN21K, CONVNEXT_TINY_21K]
        near = difflib.get_close_matches(name, [*own, *timm.list_models()], n=3)
        fix = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all"
        raise ConfigError(f"timm knows no model {name!r}", where=_KEY, fix=fix)
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        model, _, tag = name.partition(".")
        known = ", ".join(timm.list_pretrained(f"{model}.*")) or "none"
        raise ConfigError(
            f"the timm model {model} has no weights tagged {tag!r}",
            where=_KEY,
            fix=f"known: {known}",
        ) from None


def _fit_to_any_size(name: str, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """An untrained model, and the options with what it needs so that it takes any image size."""
    source = timm.get_pretrained_cfg(name)
    if source is None or not source.fixed_input_size:
        return _checked(name, options), options
    reason: ConfigError | None = None
    for extra in ({"strict_img_size": False}, {"dynamic_img_size": True}, {}):
        try:
            return _checked(name, {**options, **extra}), {**options, **extra}
        except ConfigError as error:
            reason = error
    raise ConfigError(
        f"the timm model {name} takes images of {source.input_size[1:]} only",
        where=_KEY,
        fix="a detector sees images of many sizes: take a convolutional model, swin or vit",
    ) from reason


def _checked(name: str, options: dict[str, Any]) -> nn.Module:
    """The untrained model, having shown on a small picture that its maps have their strides."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        maps = _probe(model, options["in_chans"])
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"the timm model {name} does not give feature maps: {type(error).__name__}: {error}",
            where=_KEY,
            fix="take another model",
        ) from error
    for (height, width), stride, expected in maps:
        if (height, width) != expected:
            raise ConfigError(
                f"a feature map of the timm model {name} is {height}x{width} where its stride of "
                f"{stride} gives {expected[0]}x{expected[1]}",
                where=_KEY,
                fix="take a model that pads its convolutions",
            )
    return model


def _probe(
    model: nn.Module, in_channels: int
) -> list[tuple[tuple[int, int], int, tuple[int, int]]]:
    """For every map: its size, its stride, and the size that the stride promises."""
    info: Any = model.feature_info
    strides: list[int] = info.reduction()
    unit = math.lcm(*strides) * math.ceil(32 / max(strides))
    height, width = 2 * unit, 3 * unit
    like = next(model.parameters())
    was_training = model.training
    with torch.no_grad():
        pixels = torch.zeros(1, in_channels, height, width, device=like.device)
        maps_NCHW = [to_nchw(model, map_) for map_ in model.eval()(pixels)]
    model.train(was_training)
    return [
        ((map_.shape[2], map_.shape[3]), stride, (height // stride, width // stride))
        for map_, stride in zip(maps_NCHW, strides, strict=True)
    ]


def to_nchw(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """A feature map [N, C, H, W] of a model that may return [N, H, W, C]; no copy is made."""
    channels_last = getattr(model, "output_fmt", None) == Format.NHWC
    return features.permute(0, 3, 1, 2) if channels_last else features


def _check_has_level(name: str, level: int) -> None:
    try:
        info: Any = timm.create_model(name, features_only=True).feature_info
    except Exception:  # the caller has a better error to raise
        return
    count = len(info)
    if level > count:
        raise ConfigError(
            f"level {level} of the timm model {name}, which has {count}",
            where="MODEL.TIMM.OUT_LEVELS",
            fix=f"levels from 1 to {count}",
        )


def _with_weights(name: str, weights: Path, options: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, **options
        )
    except Exception as error:  # the readers of three file formats raise as they like
        raise WeightsError(
            f"timm could not load {name}: {type(error).__name__}: {error}",
            where=str(weights),
            fix="remove the file and fetch it again",
        ) from error
    return model
