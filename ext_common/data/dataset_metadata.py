"""Metadata that is read from the annotations when somebody asks for it.

Registering a dataset opens no file, so a hundred datasets can be listed where two are on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.data.catalog import Metadata


class LazyMetadata(Metadata):
    """detectron2's Metadata with attributes that are computed on first use.

    Args:
        name: the dataset.
        lazy: function that computes a value, by attribute name.
        stamp: tells the state of the files that the values come from; a value is computed again
            once it differs.
        known: attributes that are there at once.
    """

    def __init__(
        self,
        name: str,
        lazy: Mapping[str, Callable[[], Any]],
        stamp: Callable[[], object],
        **known: Any,
    ) -> None:
        self.__dict__.update(known, name=name, _lazy=dict(lazy), _stamp=stamp, _computed={})

    def __getattr__(self, key: str) -> Any:
        # reached only where the attribute is not in __dict__
        lazy = self.__dict__.get("_lazy", {})
        if key not in lazy:
            return super().__getattr__(key)
        stamp = self._stamp()
        if key not in self._computed or self._computed[key][0] != stamp:
            self._computed[key] = (stamp, lazy[key]())
        return self._computed[key][1]

    def as_dict(self) -> dict[str, Any]:
        """All metadata; computes what is missing."""
        plain = {key: value for key, value in self.__dict__.items() if not key.startswith("_")}
        return {**plain, **{key: getattr(self, key) for key in self._lazy}}
