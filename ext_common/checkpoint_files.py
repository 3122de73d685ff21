"""Checkpoint files of one run: written whole, proven by a checksum, found again newest first.

Beside ``model_0000019.pth`` lies ``model_0000019.pth.json`` with its SHA-256 and iteration; the
file ``last_checkpoint`` names the newest one for detectron2's tools. A process may be killed at
any moment in between: what it leaves is an older complete checkpoint or the new one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ext_common.atomic_file import writing
from ext_common.errors import WeightsError
from ext_common.file_digest import sha256_of
from ext_common.weights_io import load_tensors, save_tensors_atomic

SIDE_FILE_SUFFIX = ".json"
LAST_CHECKPOINT = "last_checkpoint"
_NUMBERED = re.compile(r"model_(\d+)\.pth")

logger = logging.getLogger(__name__)


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Save a training state under ``path``, then its side file, then ``last_checkpoint``.

    Args:
        state: tensors and plain values; ``iteration`` must be among them.
        path: ``*.pth`` in the folder of the run.

    Raises:
        WeightsError: the disk is full or the folder cannot be written (earlier checkpoints stay),
            or the state holds something else than tensors and plain values.
    """
    side_file = side_file_of(path)
    plain = {key: plain_value(value, key) for key, value in state.items()}
    try:
        # an old checksum beside a new file would condemn the new file
        side_file.unlink(missing_ok=True)
        save_tensors_atomic(plain, path)
        record = {
            "sha256": sha256_of(path),
            "size": path.stat().st_size,
            "iteration": int(state["iteration"]),
        }
        _write_text(side_file, json.dumps(record))
        _write_text(path.with_name(LAST_CHECKPOINT), path.name)
    except OSError as error:
        raise WeightsError(
            f"the checkpoint cannot be written: {error}",
            where=str(path),
            fix="free some space; earlier checkpoints are untouched",
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint after comparing it with its side file (where there is one).

    Raises:
        WeightsError: damaged, no weight file, or not a training checkpoint.
    """
    if path.is_file() and not matches_side_file(path):
        raise WeightsError("the content does not match its checksum", where=str(path))
    state = load_tensors(path)
    for key in ("model", "iteration"):
        if key not in state:
            raise WeightsError(f"no {key!r} in it: not a training checkpoint", where=str(path))
    return state


def matches_side_file(path: Path, *, required: bool = False) -> bool:
    """Whether a checkpoint has the checksum that its side file says.

    Args:
        path: the checkpoint.
        required: what to answer where there is no usable side file is False. Otherwise such a file
            proves nothing against the checkpoint, whose archive has checksums of its own.
    """
    expected = _read_record(side_file_of(path)).get("sha256")
    if expected is None:
        return not required
    return bool(expected == sha256_of(path))


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its content; damaged ones are named in the log.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        WeightsError: there are checkpoints, and every one of them is damaged.
    """
    paths = checkpoints_newest_first(folder)
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except WeightsError as error:
            logger.warning("Passing over a checkpoint: %s", error)
    if paths:
        raise WeightsError(
            f"none of its {len(paths)} checkpoints can be used",
            where=str(folder),
            fix="start again with --overwrite, or give MODEL.WEIGHTS",
        )
    return None


def checkpoints_newest_first(folder: Path) -> list[Path]:
    """Files that may be checkpoints of the run, by iteration, then by time of writing."""
    if not folder.is_dir():
        return []
    last = folder / LAST_CHECKPOINT
    named = last.read_text(errors="replace").strip() if last.is_file() else ""
    found = [
        path
        for path in folder.glob("*.pth")
        if side_file_of(path).is_file()
        or path.name == named
        or path.name == "model_final.pth"
        or _NUMBERED.fullmatch(path.name)
    ]
    return sorted(found, key=_age, reverse=True)


def numbered_newest_first(folder: Path) -> list[Path]:
    """The checkpoints that were saved by period, by iteration."""
    found = [path for path in folder.glob("*.pth") if _NUMBERED.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def side_file_of(path: Path) -> Path:
    """Where the checksum of a checkpoint is kept."""
    return path.with_name(path.name + SIDE_FILE_SUFFIX)


def plain_value(value: Any, place: str) -> Any:
    """``value`` as tensors and plain Python values, which loads without running code.

    Raises:
        WeightsError: an object of another kind, with its place in the state.
    """
    if isinstance(value, np.generic):  # first: a NumPy float is a Python float too
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    if isinstance(value, np.ndarray):
        raise WeightsError("a NumPy array is no tensor", where=place, fix="save torch tensors")
    if isinstance(value, Mapping):
        if hasattr(value, "_metadata"):  # a module's state: detectron2 wants its versions
            return value
        return {key: plain_value(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain_value(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise WeightsError(
        f"a {type(value).__name__} cannot be saved: only tensors and plain values",
        where=f"checkpoint entry {place}",
    )


def _age(path: Path) -> tuple[int, float]:
    iteration = _read_record(side_file_of(path)).get("iteration")
    if not isinstance(iteration, int):
        number = _NUMBERED.fullmatch(path.name)
        iteration = int(number[1]) if number else -1
    return iteration, path.stat().st_mtime


def _read_record(side_file: Path) -> dict[str, Any]:
    try:
        record = json.loads(side_file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text.encode())
