"""Pickles read without running what they name.

A pickle may name any function and have it called. The reader here answers with its own small
builders for the names that weight files need (NumPy arrays, tensors, builtins) and refuses the rest.

A pickle may also set the state of any object that it made. NumPy's own ``__setstate__`` crashes the
process on a damaged state, so arrays, dtypes and tensors stay inside :class:`Shell` objects, which
check what they are given, until the whole pickle has been read.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

PLAIN_NUMPY_KINDS = "biufcSU"
"""NumPy dtype kinds that hold plain values: no objects, no records."""

_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
_ARRAY_CLASS = "numpy.ndarray"


class RefusedGlobalError(pickle.UnpicklingError):
    """A pickle names something that is no plain value, array or tensor."""


class Shell:
    """Holds a value that a pickle must not touch while it is being read."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a state for a finished {type(self.value).__name__}")


class InertObject:
    """An instance of a class that is not looked up: its attributes and nothing else."""

    def __init__(self, *args: object) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, dict) else {}


class StrictUnpickler(pickle._Unpickler):
    """Base of the readers: sets the state of our own objects only.

    Python's reader, not the C one, whose memory a damaged file can make grow without bound.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Hand a :class:`Shell` or :class:`InertObject` its state."""
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, Shell | InertObject):
            raise RefusedGlobalError(f"the state of a {type(made).__name__}")
        made.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


class PlainUnpickler(StrictUnpickler):
    """Reads builtins, NumPy arrays and numbers, and tensors (as shells); refuses every other name.

    Args:
        file: the open file. Python 2 pickles (detectron2's model zoo) are read as Latin-1, which
            keeps the bytes of their arrays.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self._builders = _make_builders()

    def find_class(self, module: str, name: str) -> Any:
        """The builder that answers for ``module.name``; RefusedGlobalError where there is none."""
        key = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        key = key.replace("__builtin__.", "builtins.")
        if key not in self._builders:
            raise RefusedGlobalError(f"{module}.{name}")
        return self._builders[key]


def load_plain_pickle(file: BinaryIO) -> Any:
    """Read one pickle of builtins, arrays and tensors.

    Raises:
        RefusedGlobalError: it names anything else; the message is that name.
        Exception: whatever a damaged pickle provokes.
    """
    return _opened(PlainUnpickler(file).load(), {})


def strided_view(flat: Any, offset: int, size: Any, stride: Any) -> Shell:
    """A tensor over a shelled flat tensor; RuntimeError where it would reach outside."""
    return Shell(torch.as_strided(_value(flat, torch.Tensor), tuple(size), tuple(stride), offset))


class _DtypeShell(Shell):
    """A dtype of plain values; of its pickled state only the byte order counts."""

    __slots__ = ()

    def __init__(self, code: Any, *flags: object) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.kind not in PLAIN_NUMPY_KINDS:
            raise RefusedGlobalError(f"numpy.dtype({code!r})")
        super().__init__(dtype)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _ArrayShell(Shell):
    """An array, empty until its state arrives."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        super().__init__(None)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C").value


def _make_builders() -> dict[str, Any]:
    builders: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": lambda text, encoding="latin1": _latin1_bytes(text, encoding),
        _ARRAY_CLASS: Shell(_ARRAY_CLASS),  # only ever an argument of _reconstruct
        "numpy.dtype": lambda *args: _DtypeShell(*args),
        "numpy.core.multiarray._reconstruct": lambda *args: _ArrayShell(),
        "numpy.core.multiarray.scalar": lambda dtype, data: _scalar(dtype, data),
        "numpy.core.numeric._frombuffer": lambda *args: _array(*args),
        "torch.storage._load_from_bytes": lambda data: _storage(data),
        "torch._utils._rebuild_tensor_v2": lambda flat, offset, size, stride, *rest: strided_view(
            flat, offset, size, stride
        ),
        "torch._utils._rebuild_parameter": lambda data, *rest: Shell(_value(data, torch.Tensor)),
        "torch.Size": lambda sizes=(): tuple(sizes),
    }
    for kind in _BUILTINS:
        builders[f"builtins.{kind.__name__}"] = kind
    return builders


def _value(shell: Any, kind: type) -> Any:
    """What a shell holds, if it is of this kind."""
    if not isinstance(shell, Shell) or not isinstance(shell.value, kind):
        raise pickle.UnpicklingError(f"a {kind.__name__} expected, not {type(shell).__name__}")
    return shell.value


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """How protocols up to 2 write bytes; other codecs have no business here."""
    if encoding != "latin1":
        raise RefusedGlobalError(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> Shell:
    """A writable array in native byte order; ValueError where data and shape do not match."""
    plain: np.dtype[Any] = _value(dtype, np.dtype)
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    flat = np.frombuffer(raw, plain) if raw else np.empty(0, plain)
    array = flat.astype(plain.newbyteorder("="))  # a copy
    return Shell(array.reshape(tuple(shape), order="F" if order == "F" else "C"))


def _scalar(dtype: Any, data: Any) -> Shell:
    return Shell(_array(data, dtype, (1,), "C").value[0])


def _storage(data: bytes) -> Shell:
    """The storage of a pickled tensor as a flat tensor; the inner file is read as tensors only."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise RefusedGlobalError(f"a storage of type {type(storage).__name__}")
    return Shell(torch.empty(0, dtype=storage.dtype).set_(storage))


def _opened(value: Any, seen: dict[int, Any]) -> Any:
    """The same structure with every shell replaced by what it holds; ``seen`` keeps sharing."""
    if isinstance(value, Shell):
        return value.value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        seen[id(value)] = value
        for key in value:
            value[key] = _opened(value[key], seen)
    elif isinstance(value, list):
        seen[id(value)] = value
        value[:] = [_opened(item, seen) for item in value]
    elif isinstance(value, tuple):
        seen[id(value)] = value  # replaced below; a cycle leads through a list or dict
        seen[id(value)] = tuple(_opened(item, seen) for item in value)
        return seen[id(value)]
    return value
