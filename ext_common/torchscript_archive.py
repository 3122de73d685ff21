"""Tensors of a TorchScript archive (OpenAI's CLIP ``.pt`` files) without running its code.

``torch.jit.load`` compiles the archive's code. The weights need none of it: they lie as raw records
``<root>/data/<key>`` beside a pickle ``<root>/data.pkl`` that says which module holds which record.
Classes of the archive become inert objects that only keep their attributes.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ext_common.safe_pickle import (
    InertObject,
    RefusedGlobalError,
    Shell,
    StrictUnpickler,
    strided_view,
)

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_LIST_BUILDERS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of name and extra field, zip local file header


def is_torchscript(names: list[str]) -> bool:
    """Whether a zip with these entries is a TorchScript archive."""
    return any(name.endswith("/constants.pkl") for name in names)


class _ArchiveUnpickler(StrictUnpickler):
    """Reads ``data.pkl``: tensors, plain values, inert objects; refuses every other name."""

    def __init__(self, file: io.BytesIO, records: _Records) -> None:
        super().__init__(file)
        self._records = records

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (InertObject,), {})
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *rest: strided_view(
                flat, offset, size, stride
            )
        if (module, name) == ("torch", "device"):
            return lambda *words: ":".join(map(str, words))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LIST_BUILDERS:
            return lambda values: values
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, tag: value
        raise RefusedGlobalError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Shell:
        kind, dtype, key, _device, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise RefusedGlobalError(f"persistent id {kind!r}")
        return Shell(self._records.storage(str(key), dtype, int(numel)))


class _Records:
    """The raw storages of an archive, each made once."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str, *, mapped: bool) -> None:
        self._path, self._archive, self._root = path, archive, root
        self._file = np.memmap(path, np.uint8, mode="c") if mapped else None
        self._made: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        """Flat tensor of ``numel`` values; ValueError where the record is shorter."""
        if (key, dtype) not in self._made:
            raw = self._bytes(f"{self._root}data/{key}")
            if raw.nbytes < numel * dtype.itemsize:
                raise ValueError(f"record data/{key} has {raw.nbytes} bytes for {numel} values")
            flat = torch.from_numpy(raw)[: numel * dtype.itemsize].view(dtype)
            self._made[key, dtype] = flat
        return self._made[key, dtype]

    def _bytes(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        info = self._archive.getinfo(name)
        if self._file is None or info.compress_type != zipfile.ZIP_STORED:
            # a copy, because tensors want writable memory; read() compares the checksum
            return np.frombuffer(bytearray(self._archive.read(info)), np.uint8)
        header = self._file[info.header_offset : info.header_offset + _LOCAL_HEADER.size].tobytes()
        start = info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
        return self._file[start : start + info.file_size]


def read_torchscript(path: Path, *, mapped: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of the archive's modules, by dotted name, on the CPU and in the stored dtype.

    Parameters, buffers and other tensor attributes are alike here; a shared one has all its names.

    Args:
        path: the archive.
        mapped: tensors are views of the file, read when used (and not compared with checksums).

    Raises:
        RefusedGlobalError: the pickle names what no archive of weights needs.
        Exception: whatever a damaged archive provokes.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next(n for n in names if n.endswith("/data.pkl"))[: -len("data.pkl")]
        if f"{root}byteorder" in names:
            order = archive.read(f"{root}byteorder").decode()
            if order != sys.byteorder:
                raise ValueError(f"{order}-endian archive on a {sys.byteorder}-endian machine")
        records = _Records(path, archive, root, mapped=mapped)
        data = io.BytesIO(archive.read(f"{root}data.pkl"))
        return dict(_tensors(_ArchiveUnpickler(data, records).load(), ""))


def _tensors(value: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if not isinstance(value, InertObject):
        return
    if depth > 200:
        raise ValueError("modules nested more than 200 deep")
    for name, child in getattr(value, "attributes", {}).items():
        if isinstance(child, Shell):
            yield f"{prefix}{name}", child.value
        else:
            yield from _tensors(child, f"{prefix}{name}.", depth + 1)
