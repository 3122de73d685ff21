"""Data of mixed supervision; importing registers the loader and the published dataset names."""

from detic_ext.data import builtin, multi_dataset_loader  # noqa: F401 - registration
