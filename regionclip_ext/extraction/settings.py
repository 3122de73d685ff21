"""What region features were made with, kept beside them: files of two settings do not mix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ext_common.data.json_files import read_json, write_json_atomic
from ext_common.errors import ConfigError
from ext_common.file_digest import sha256_of
from ext_common.images import printable
from ext_common.run_config import changed_keys

NAME = "region_features.json"

_INPUT = ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
_MOST_NAMED = 4


def settings_of(cfg: CfgNode, weights: str) -> dict[str, Any]:
    """What decides about the features; of files, their names and content.

    Args:
        cfg: complete configuration.
        weights: of the detector; empty for none.
    """
    content = yaml.safe_load(cfg.dump())
    model = content["MODEL"]
    del model["DEVICE"], model["TEXT_ENCODER"]["CACHE_DIR"], model["TEXT_ENCODER"]["ALLOW_DOWNLOAD"]
    return {
        "weights": _described(weights),
        "MODEL": _described(model),
        "INPUT": {key: content["INPUT"][key] for key in _INPUT},
        "TEST": {"DETECTIONS_PER_IMAGE": content["TEST"]["DETECTIONS_PER_IMAGE"]},
    }


def check_settings(folder: Path, settings: Mapping[str, Any], *, filled: bool) -> None:
    """Compare with what is kept in a folder.

    Args:
        folder: of the features; it need not exist.
        settings: of this run.
        filled: whether the folder has features of the pictures of this run.

    Raises:
        ConfigError: its features were made with other settings, or nothing says with which.
        DatasetError: the file of the settings is damaged.
    """
    path = folder / NAME
    fix = "name another --output, or make all pictures anew with --overwrite"
    if path.is_file():
        changes = changed_keys(read_json(path), settings)
        if changes:
            named = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items()]
            more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
            raise ConfigError(
                f"made with other settings: {'; '.join(named[:_MOST_NAMED])}{more}",
                where=printable(folder),
                fix=fix,
            )
    elif filled:
        raise ConfigError(
            f"has features, but no {NAME} that says how they were made",
            where=printable(folder),
            fix=fix,
        )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of features beside them."""
    write_json_atomic(folder / NAME, settings)


def _described(value: Any) -> Any:
    """The same with names and digests in place of files."""
    if isinstance(value, dict):
        return {key: _described(part) for key, part in value.items()}
    if isinstance(value, str) and _is_file(value):
        path = Path(value).expanduser()
        return f"{path.name} (SHA-256 {sha256_of(path)[:16]})"
    return value


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a long list of names is no valid file name
        return False
