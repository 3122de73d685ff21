"""Weight files: read without running code, written so that no half file is ever seen.

Every package reads weights through :func:`load_tensors`. The kind of a file is told by its content,
not by its name: safetensors, torch's zip and older formats, TorchScript archives (OpenAI CLIP), and
plain pickles (detectron2's model zoo).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from ext_common.atomic_file import writing
from ext_common.errors import WeightsError
from ext_common.safe_pickle import RefusedGlobalError, load_plain_pickle
from ext_common.torchscript_archive import is_torchscript, read_torchscript

UNSAFE_FLAG = "--unsafe-load"

_TORCH_LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # pickled magic number
_ZIP_START = b"PK\x03\x04"
_DAMAGED = "copy, download or save it again"


def load_tensors(
    path: str | Path, *, allow_unsafe: bool = False, mapped: bool = False
) -> dict[str, Any]:
    """Read a weight file whose top level is a dict (a state dict, or a checkpoint that holds one).

    Args:
        path: ``.safetensors``, ``.pth``/``.pt``/``.bin``, TorchScript archive or detectron2 ``.pkl``.
            Nothing is unwrapped or renamed; a TorchScript archive gives its tensors by dotted name.
        allow_unsafe: run what the file's pickle asks for (the ``--unsafe-load`` flag of the tools).
            Only for files whose author you trust: loading then executes their code.
        mapped: tensors are read from the file when used (safetensors, torch zip, TorchScript). Fast
            for a glance at a few; checksums are not compared, and the file must stay as it is.

    Returns:
        Tensors on the CPU in the stored dtype (NumPy arrays stay arrays), plain values, and
        dicts/lists of them.

    Raises:
        WeightsError: missing, truncated or damaged, no weight file, or not loadable without
            running code.
    """
    content = load_plain(path, allow_unsafe=allow_unsafe, mapped=mapped)
    if not isinstance(content, dict):
        raise WeightsError(
            f"holds a {type(content).__name__}, not a dict of tensors",
            where=str(path),
            fix="a state dict or a checkpoint is needed here",
        )
    return content


def load_plain(path: str | Path, *, allow_unsafe: bool = False, mapped: bool = False) -> Any:
    """As :func:`load_tensors`, for files whose top level may be anything (a bare tensor, a list)."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError("no such file", where=str(path), fix="check the path and the folder")
    try:
        return _read(path, allow_unsafe, mapped)
    except WeightsError:
        raise
    except RefusedGlobalError as error:
        raise _refused(path, str(error)) from None
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None and "Weights only load failed" not in str(error):
            raise _damaged(path, error) from error
        raise _refused(path, name[1] if name else "more than tensors") from None
    except OSError as error:
        raise WeightsError(f"cannot be read: {error}", where=str(path)) from error
    except Exception as error:  # a damaged file can provoke any error in a parser
        raise _damaged(path, error) from error


def _read(path: Path, allow_unsafe: bool, mapped: bool) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise WeightsError("the file is empty", where=str(path), fix=_DAMAGED)
    if path.suffix == ".safetensors":
        return load_file(path)
    if start.startswith(_ZIP_START):
        if not zipfile.is_zipfile(path):
            raise WeightsError(
                "truncated: the end of the archive is missing", where=str(path), fix=_DAMAGED
            )
        return _read_zip(path, allow_unsafe, mapped)
    if start.startswith(_TORCH_LEGACY_START):
        return torch.load(path, map_location="cpu", weights_only=not allow_unsafe)
    if start[:1] in b"\x80(}]":
        with path.open("rb") as file:
            if allow_unsafe:
                return pickle.load(file, encoding="latin1")  # noqa: S301 - asked for by the user
            return load_plain_pickle(file)
    raise WeightsError(
        f"not a weight file: it starts with {start[:8]!r}",
        where=str(path),
        fix="safetensors, torch .pth/.pt, TorchScript and detectron2 .pkl files are read",
    )


def _read_zip(path: Path, allow_unsafe: bool, mapped: bool) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("/data.pkl") for name in names):
            raise WeightsError("a zip file without weights", where=str(path), fix=_DAMAGED)
        if is_torchscript(names):
            return read_torchscript(path, mapped=mapped)
        # torch itself does not compare the checksums that it writes
        bad = None if mapped else archive.testzip()
    if bad is not None:
        raise WeightsError(
            f"record {bad} does not match its checksum", where=str(path), fix=_DAMAGED
        )
    return torch.load(path, map_location="cpu", weights_only=not allow_unsafe, mmap=mapped)


def _refused(path: Path, name: str) -> WeightsError:
    return WeightsError(
        f"refused: its pickle asks for {name}, and only tensors and plain values are loaded",
        where=str(path),
        fix=f"{UNSAFE_FLAG} (allow_unsafe=True) loads it and runs its code: only if you trust it",
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().splitlines()
    return WeightsError(
        f"truncated or damaged: {type(error).__name__}{': ' + reason[0] if reason else ''}",
        where=str(path),
        fix=_DAMAGED,
    )


def save_tensors_atomic(obj: Any, path: str | Path) -> None:
    """Save tensors and plain values so that ``path`` is never seen half written.

    Args:
        obj: what :func:`load_tensors` can give back; for a ``.safetensors`` path a flat dict of
            tensors, otherwise anything of tensors, plain values, dicts and lists.
        path: the file; its folder must exist.

    Raises:
        WeightsError: the folder is missing or cannot be written, or the disk is full. An earlier
            file of that name is then unchanged.
    """
    path = Path(path).expanduser()
    try:
        with writing(path) as file:
            if path.suffix == ".safetensors":
                file.write(save({name: tensor.contiguous() for name, tensor in obj.items()}))
            else:
                torch.save(obj, file)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write to a file object as RuntimeError
        raise unwritable(path, error) from error


def unwritable(path: str | Path, error: Exception) -> WeightsError:
    """The error about a file of weights or embeddings that cannot be written."""
    return WeightsError(
        f"cannot be written: {error}", where=str(path), fix="check the folder and the free space"
    )
