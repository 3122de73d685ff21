"""Several arrays and a header in one file that processes map into memory and share.

Layout: magic, digest of the header and its length, the header (JSON), then the arrays, each at a
multiple of 64 bytes. Nothing in it is executed, and nothing is used before its digest was checked.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.atomic_file import replacing

_MAGIC = b"ext-arrays-1\n\0\0\0"
_PREFIX = struct.Struct("<16s16sQ")  # magic, digest and length of the header
_ALIGNMENT = 64
_KINDS = "iuf"
_CHUNK = 1 << 24

Arrays = dict[str, NDArray[Any]]


class ArrayFileError(ValueError):
    """The file is not one of these, or was damaged."""


def write_arrays(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write header and arrays atomically.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    places, end = {}, 0
    for name, array in packed.items():
        places[name] = {"at": end, "dtype": array.dtype.str, "shape": list(array.shape)}
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    digest = _digest()
    for array in packed.values():
        digest.update(_content(array))
    content = {"header": dict(header), "arrays": places, "digest": digest.hexdigest()}
    text = json.dumps(content).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(_PREFIX.pack(_MAGIC, _digest(text).digest(), len(text)))
        stream.write(text)
        for array in packed.values():
            stream.write(_content(array))
            stream.write(b"\0" * (-array.nbytes % _ALIGNMENT))


def read_header(path: str | Path) -> dict[str, Any]:
    """The header alone.

    Raises:
        OSError: the file cannot be read.
        ArrayFileError: damaged, or another kind of file.
    """
    header: dict[str, Any] = _read_content(Path(path))[0]["header"]
    return header


def map_arrays(path: str | Path, *, check: bool = True) -> Arrays:
    """The arrays, read-only and mapped.

    Args:
        path: the file.
        check: compare their digest; reads all of the file once.

    Raises:
        OSError: the file cannot be read.
        ArrayFileError: damaged, or another kind of file.
    """
    content, start = _read_content(Path(path))
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    digest = _digest()
    arrays: Arrays = {}
    for name, place in content["arrays"].items():
        dtype, shape = np.dtype(place["dtype"]), tuple(place["shape"])
        if dtype.kind not in _KINDS:
            raise ArrayFileError(f"{path}: an array of type {dtype}")
        begin = start + place["at"]
        end = begin + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        if end > len(whole):
            raise ArrayFileError(f"{path} is cut off")
        if check:
            for part in range(begin, end, _CHUNK):
                digest.update(whole[part : min(part + _CHUNK, end)].data)
        arrays[name] = whole[begin:end].view(dtype).reshape(shape)
    if check and digest.hexdigest() != content["digest"]:
        raise ArrayFileError(f"{path} was damaged: another digest")
    return arrays


def _read_content(path: Path) -> tuple[dict[str, Any], int]:
    """What the file says about its arrays, and where they start."""
    with path.open("rb") as stream:
        prefix = stream.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise ArrayFileError(f"{path} is cut off")
        magic, digest, length = _PREFIX.unpack(prefix)
        if magic != _MAGIC:
            raise ArrayFileError(f"{path} is another kind of file")
        text = stream.read(min(length, path.stat().st_size))
    if len(text) != length or _digest(text).digest() != digest:
        raise ArrayFileError(f"{path} was damaged: its header")
    content: dict[str, Any] = json.loads(text)
    return content, _PREFIX.size + length


def _content(array: NDArray[Any]) -> memoryview | bytes:
    return array.data.cast("B") if array.size else b""


def _digest(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)
