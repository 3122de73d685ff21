"""Finding CLIP weights: a local file, open_clip's caches, and a download only when asked."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ext_common.errors import ConfigError, WeightsError

CONFIG_WEIGHTS = "MODEL.TEXT_ENCODER.WEIGHTS"
CONFIG_DOWNLOAD = "MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD"
OPENAI_TAG = "openai"
LOCAL_DIR = "local-dir:"
"""Prefix of a model name that means a folder with ``open_clip_config.json`` and weights."""

_FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def find_clip_weights(
    model_name: str,
    weights: str = "",
    *,
    allow_download: bool = False,
    cache_dir: str | Path | None = None,
) -> Path:
    """The weight file of an open_clip model.

    Args:
        model_name: an open_clip model, or ``local-dir:FOLDER``.
        weights: a file; or an open_clip tag such as ``laion2b_s34b_b79k``; empty for OpenAI's.
        allow_download: let open_clip fetch a file that is in no cache.
        cache_dir: instead of open_clip's own cache folders.

    Raises:
        WeightsError: no such file, or not in a cache; the message has the file's name, where it
            was looked for, and the switch.
        ConfigError: open_clip does not know the model.
    """
    if weights and Path(weights).expanduser().is_file():
        return Path(weights).expanduser()
    if model_name.startswith(LOCAL_DIR) and not weights:
        folder = Path(model_name[len(LOCAL_DIR) :]).expanduser()
        found = next((folder / n for n in _FOLDER_FILES if (folder / n).is_file()), None)
        if found is None:
            raise WeightsError(f"none of {', '.join(_FOLDER_FILES)} is there", where=str(folder))
        return found
    tag = weights or OPENAI_TAG
    source = _published(model_name, tag, weights)
    places = _cache_places(source, cache_dir)
    for place in places:
        if place.is_file():
            return place
    if not allow_download:
        raise _missing(model_name, tag, places, "downloading is off")
    return _download(model_name, tag, source, places, cache_dir)


def model_config(model_name: str) -> dict[str, Any]:
    """open_clip's configuration of a model (a copy).

    Raises:
        ConfigError: no such model or folder.
    """
    import open_clip

    try:
        config = open_clip.get_model_config(model_name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no readable open_clip configuration: {error}", where=model_name
        ) from error
    if config is None:
        near = difflib.get_close_matches(model_name, open_clip.list_models(), n=1)
        raise ConfigError(
            f"open_clip has no model {model_name!r}",
            where="MODEL.TEXT_ENCODER.NAME",
            fix=f"did you mean {near[0]}?" if near else "open_clip.list_models() names them",
        )
    return dict(config)


def _published(model_name: str, tag: str, weights: str) -> dict[str, Any]:
    """open_clip's record of published weights: their addresses and their activation function."""
    import open_clip

    config = model_config(model_name)
    source: dict[str, Any] = open_clip.get_pretrained_cfg(model_name, tag)
    if not source:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        if weights:
            raise WeightsError(
                "no such file, and no open_clip tag of this model",
                where=weights,
                fix=f"check {CONFIG_WEIGHTS}; tags of {model_name}: {tags}",
            )
        raise WeightsError(
            f"OpenAI published no weights for {model_name}",
            where=CONFIG_WEIGHTS,
            fix=f"give a file or one of its tags: {tags}",
        )
    if bool(source.get("quick_gelu")) and not config.get("quick_gelu"):
        raise quick_gelu_error(model_name, f"tag {tag}")
    return source


def quick_gelu_error(model_name: str, weights: str) -> WeightsError:
    """OpenAI's models use another activation function; with the wrong one features drift."""
    return WeightsError(
        f"these weights were trained with QuickGELU, but {model_name} is the variant without",
        where=weights,
        fix=f"use the model name {model_name}-quickgelu",
    )


def _cache_places(source: dict[str, Any], cache_dir: str | Path | None) -> list[Path]:
    """Files that open_clip would have written, whether they are there or not."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "clip"
    places = [folder / source["url"].rsplit("/", 1)[-1]] if source.get("url") else []
    if source.get("hf_hub"):
        hub = str(cache_dir) if cache_dir else constants.HF_HUB_CACHE
        repository, _, name = source["hf_hub"].rpartition("/")
        names = [name] if name else list(_FOLDER_FILES)
        for candidate in names:
            cached = try_to_load_from_cache(repository, candidate, cache_dir=hub)
            snapshot = Path(hub) / f"models--{repository.replace('/', '--')}" / candidate
            places.append(Path(cached) if isinstance(cached, str) else snapshot)
    return places


def _download(
    model_name: str,
    tag: str,
    source: dict[str, Any],
    places: list[Path],
    cache_dir: str | Path | None,
) -> Path:
    import open_clip

    try:
        path = open_clip.download_pretrained(
            source, cache_dir=str(cache_dir) if cache_dir else None
        )
    except Exception as error:  # the network and two client libraries: anything can come
        raise _missing(model_name, tag, places, f"downloading failed: {error}") from error
    return Path(path)


def _missing(model_name: str, tag: str, places: list[Path], why: str) -> WeightsError:
    return WeightsError(
        f"weights {tag!r} of {model_name} not found as {' or '.join(map(str, places))}; {why}",
        where="text encoder",
        fix=f"put {places[0].name} there, or name a local file in {CONFIG_WEIGHTS}, "
        f"or set {CONFIG_DOWNLOAD} True where there is a network",
    )
