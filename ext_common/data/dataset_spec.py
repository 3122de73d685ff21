"""What one registered dataset is: files, options, and the records, classes and counts in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ext_common.data.annotation_checks import contiguous_ids
from ext_common.data.class_folders import (
    FolderOptions,
    as_categories,
    load_class_folders,
    read_folder_map,
)
from ext_common.data.dataset_names import require_dataset
from ext_common.data.index_store import open_index
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.indexing import Indexing
from ext_common.data.json_files import read_categories, read_json
from ext_common.data.lvis_json import LoadOptions, dataset_dicts, images_per_class
from ext_common.data.unlabelled_images import ImageList, images_of_folder, images_of_tars
from ext_common.errors import DatasetError

DATASET_TYPES = ("lvis", "coco", "image_labels", "class_folders", "image_folder", "image_tars")
IMAGE_LABEL_TYPES = frozenset({"image_labels", "class_folders"})
UNLABELLED_TYPES = frozenset({"image_folder", "image_tars"})

LAZY_KEYS = ("thing_classes", "thing_dataset_id_to_contiguous_id", "class_image_count")
"""Metadata that is read from the files on first use."""


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset; calling it gives detectron2's dataset dicts.

    Args:
        name: what config files call it.
        type: one of :data:`DATASET_TYPES`.
        images: image root, or the root of the class folders; for image_tars the folder or list of
            archives.
        json: annotation file; for class folders the index that is kept there.
        evaluator: ``evaluator_type`` of the metadata; empty = not meant for evaluation.
        groups: class names by group, scored separately.
        classes_from: class folders: the dataset whose classes these are.
        classes: class folders: class names, or a text file with one per line.
        folder_map: class folders: text file, see ``class_folders.read_folder_map``.
        unknown_folders, bad_files: see ``class_folders.FolderOptions``.
        load: how annotations are checked.
        known_classes: class names that are known without the file, in order of category ids.
    """

    name: str
    type: str
    images: str
    json: str
    evaluator: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes_from: str = ""
    classes: tuple[str, ...] | str = ()
    folder_map: str = ""
    unknown_folders: str = "error"
    bad_files: str = "error"
    load: LoadOptions = LoadOptions()
    known_classes: tuple[str, ...] = ()

    def __call__(self) -> list[dict[str, Any]]:
        """The dataset dicts; image-label types carry ``ann_type`` "image".

        Raises:
            DatasetError: see ``lvis_json.load_lvis_json`` and ``class_folders``.
        """
        if self.type in UNLABELLED_TYPES:
            return list(self.unlabelled())
        where = self.images if self.type == "class_folders" else self.json
        records = dataset_dicts(self.content(), self.images, where, self.load)
        for record in records:
            record.update(self._extra_fields())
        return records

    def records(self, indexing: Indexing) -> Sequence[dict[str, Any]]:
        """The dataset dicts; those of a large annotation file are not held in memory.

        Raises:
            DatasetError: as for a call.
        """
        if self.type in UNLABELLED_TYPES:
            return self.unlabelled()
        if self.type == "class_folders" or not indexing.wanted_for(self.json):
            return self()
        index = open_index(self.json, self.load, folder=indexing.folder)
        return IndexedRecords(index, self.images, self.load, self._extra_fields())

    def unlabelled(self) -> ImageList:
        """The images of an unlabelled type."""
        if self.type == "image_tars":
            return images_of_tars(self.images)[0]
        return images_of_folder(self.images)

    def categories(self) -> list[dict[str, Any]]:
        """The checked categories, by id; none for an unlabelled type."""
        if self.type in UNLABELLED_TYPES:
            return []
        found: list[dict[str, Any]]
        if self.type == "class_folders":
            classes, where = self._folder_classes(), self.images
            found = as_categories(classes) if classes else self.content()["categories"]
        else:
            found, where = read_categories(self.json), self.json
        contiguous_ids(found, where=where)
        return sorted(found, key=lambda category: int(category["id"]))

    def lazy_value(self, key: str) -> Any:
        """One of :data:`LAZY_KEYS`, read from the files."""
        if key == "class_image_count":
            if self.type in UNLABELLED_TYPES:
                return []
            if self.type != "class_folders" and Indexing().wanted_for(self.json):
                return open_index(self.json, self.load).header["class_image_count"]
            return images_per_class(self.content(), self.json)
        if key == "thing_classes":
            return list(self.known_classes) or [c["name"] for c in self.categories()]
        return {category["id"]: index for index, category in enumerate(self.categories())}

    def stamp(self) -> object:
        """Changes when the annotation file does."""
        try:
            state = Path(self.json).stat()
        except OSError:
            return None
        return (state.st_size, state.st_mtime_ns)

    def missing_files(self) -> list[str]:
        """Paths that the dataset needs and that are not there."""
        found = Path(self.images).exists() if self.type == "image_tars" else None
        needed = [(self.images, Path(self.images).is_dir() if found is None else found)]
        if self.type != "class_folders" and self.type not in UNLABELLED_TYPES:
            needed.append((self.json, Path(self.json).is_file()))
        if self.folder_map:
            needed.append((self.folder_map, Path(self.folder_map).is_file()))
        return [path for path, there in needed if not there]

    def _extra_fields(self) -> dict[str, Any]:
        return {"ann_type": "image"} if self.type in IMAGE_LABEL_TYPES else {}

    def content(self) -> dict[str, Any]:
        """The annotation file, or what the class folders amount to, in memory."""
        if self.type != "class_folders":
            return read_json(self.json)
        options = FolderOptions(
            folder_map=read_folder_map(self.folder_map) if self.folder_map else {},
            unknown_folders=self.unknown_folders,
            bad_files=self.bad_files,
        )
        return load_class_folders(self.images, self.json, self._folder_classes(), options)

    def _folder_classes(self) -> list[Any] | None:
        if self.classes_from:
            return categories_of(self.classes_from)
        if isinstance(self.classes, tuple):
            return list(self.classes) or None
        path = Path(self.classes)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"class list cannot be read: {error}", where=str(path)) from error
        return [line.strip() for line in lines if line.strip()]


def load_dataset(name: str, indexing: Indexing | None = None) -> Sequence[dict[str, Any]]:
    """Dataset dicts of a registered dataset of any origin.

    Args:
        name: the dataset.
        indexing: which annotation files of our own datasets are not read into memory; default
            :class:`Indexing`.

    Raises:
        DatasetError: unknown dataset, or annotations that cannot be used.
    """
    require_dataset(name)
    registered = DatasetCatalog[name]
    if isinstance(registered, DatasetSpec):
        return registered.records(indexing or Indexing())
    found: list[dict[str, Any]] = DatasetCatalog.get(name)
    return found


def categories_of(name: str) -> list[dict[str, Any]]:
    """Categories (``id``, ``name``, ...) of a registered dataset of any origin, by id.

    Raises:
        DatasetError: unknown dataset, or one without classes.
    """
    require_dataset(name)
    # not .get(): detectron2's get() calls the function
    registered = DatasetCatalog[name]
    if isinstance(registered, DatasetSpec):
        return registered.categories()
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if not names:
        raise DatasetError("this dataset has no classes", where=f"dataset {name!r}")
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = sorted(mapping, key=mapping.__getitem__) if mapping else range(1, len(names) + 1)
    return [{"id": key, "name": text} for key, text in zip(ids, names, strict=True)]
