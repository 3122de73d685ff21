"""Importing the four packages, which registers their parts."""

from __future__ import annotations

import importlib

PACKAGES = ("detic_ext", "soco_ext", "regionclip_ext", "frozen_backbone_ext")


def register_all() -> None:
    """Import every package of the project, so that its parts are in the registries."""
    # by name: ext_common must not depend on the packages that depend on it
    for name in PACKAGES:
        importlib.import_module(name)
