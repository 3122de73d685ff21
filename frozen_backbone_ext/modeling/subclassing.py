"""Giving an existing module more behaviour in place: its tensors keep their names.

A wrapper would rename ``bottom_up.res2`` to ``bottom_up.wrapped.res2``, and no published weight
file would fit. Here the module's class becomes a subclass of its own class.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@functools.cache
def _combined(mixin: type, kind: type) -> type:
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {"__module__": mixin.__module__})


def extend(module: nn.Module, mixin: type[M]) -> M:
    """Make a module an instance of ``mixin`` too, before its own class in the order of methods.

    Args:
        module: changed in place; ``mixin.__init__`` is not called.
        mixin: subclass of ``nn.Module``.

    Returns:
        The same module.
    """
    if not isinstance(module, mixin):
        kind: Any = type(module)
        added: Any = mixin
        module.__class__ = _combined(added, kind)
    assert isinstance(module, mixin)
    return module


def restore(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Undo :func:`extend`, which must have been the last one on this module."""
    kind = type(module)
    assert kind.__bases__[0] is mixin
    module.__class__ = kind.__bases__[1]
