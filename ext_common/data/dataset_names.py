"""Looking datasets up by name."""

from __future__ import annotations

import difflib

from detectron2.data import DatasetCatalog

from ext_common.errors import DatasetError


def require_dataset(name: str, *, where: str = "") -> None:
    """Check that a dataset is registered.

    Args:
        name: the dataset.
        where: what an error calls the place of the name, such as ``DATASETS.TRAIN``.

    Raises:
        DatasetError: unknown; the nearest known names are given.
    """
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.6)
    raise DatasetError(
        f"unknown dataset {name!r}",
        where=where,
        fix=(f"did you mean {' or '.join(near)}? " if near else "")
        + "list it in a YAML file of DATASETS.REGISTRY",
    )
