"""Finds the cases: every module of ``benchmarks.cases`` with a ``CASE``."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks import cases
from benchmarks.case import Case
from ext_common.errors import ConfigError


def all_cases() -> dict[str, Case]:
    """Cases by name, sorted."""
    modules = [
        importlib.import_module(f"{cases.__name__}.{module.name}")
        for module in pkgutil.iter_modules(cases.__path__)
    ]
    found = {module.CASE.name: module.CASE for module in modules if hasattr(module, "CASE")}
    return dict(sorted(found.items()))


def find_cases(name: str) -> list[Case]:
    """The case of a name, or every case for ``all``.

    Raises:
        ConfigError: an unknown name; the choices are listed.
    """
    known = all_cases()
    if name == "all":
        return list(known.values())
    if name not in known:
        raise ConfigError(f"unknown benchmark case {name!r}", fix=f"one of all, {', '.join(known)}")
    return [known[name]]
