"""What an evaluator compares with: a dataset's annotations in one checked form.

Read from the metadata's ``json_file`` (COCO or LVIS layout) or, where a dataset has none, from its
detectron2 records. Class indices are the model's contiguous ones (0-based), "ids" are the JSON's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.utils.file_io import PathManager

from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Annotations of one dataset.

    Attributes:
        dataset_name: detectron2's name of the dataset.
        images: JSON record of every image by its id, in order of ids.
        annotations: ``id`` (1, 2, ... in file order, so that 0 never means "unmatched"),
            ``image_id``, ``category_id`` (JSON ids), ``bbox`` (XYWH, pixels), ``area`` (square
            pixels; width x height where the file has none), ``iscrowd``, ``ignore`` (0 or 1) and
            ``segmentation`` where the file has it.
        class_names: by contiguous index.
        class_ids: JSON category id by contiguous index.
        categories: JSON record by category id; may lack some of ``class_ids``.
        groups: named class groups as contiguous indices (metadata ``class_groups``).
    """

    dataset_name: str
    images: Mapping[Any, Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    categories: Mapping[int, Mapping[str, Any]]
    groups: Mapping[str, tuple[int, ...]]

    @property
    def has_masks(self) -> bool:
        """Whether every annotation has a segmentation."""
        return all("segmentation" in annotation for annotation in self.annotations)

    @property
    def frequencies(self) -> tuple[str, ...]:
        """LVIS' "r", "c", "f", or "" where the file does not say, by contiguous index."""
        return tuple(self.categories.get(key, {}).get("frequency", "") for key in self.class_ids)

    def restricted(self, image_ids: Collection[Any]) -> GroundTruth:
        """The same for these images only."""
        wanted = set(image_ids)
        return dataclasses.replace(
            self,
            images={key: image for key, image in self.images.items() if key in wanted},
            annotations=[ann for ann in self.annotations if ann["image_id"] in wanted],
        )


def load_ground_truth(dataset_name: str) -> GroundTruth:
    """Read and check the annotations of a registered dataset.

    Without ``thing_dataset_id_to_contiguous_id`` in the metadata, index ``i`` is the ``i``-th
    smallest category id (for LVIS: id - 1), as detectron2's loaders number them.

    Raises:
        DatasetError: unreadable file, missing fields, annotations of unknown images, classes that
            do not fit the metadata, or a class group that names an unknown class.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file = metadata.get("json_file")
    if json_file:
        content = read_json(PathManager.get_local_path(json_file))
    else:
        content = convert_to_coco_dict(dataset_name)
    where = str(json_file or dataset_name)
    for field in ("images", "categories"):
        if not isinstance(content.get(field), list):
            raise DatasetError(f"no list {field!r}", where=where, fix="use the COCO or LVIS layout")
    try:
        images = {image["id"]: image for image in sorted(content["images"], key=_id)}
        categories = {category["id"]: category for category in content["categories"]}
        annotations = [
            _checked(annotation, number, images, where)
            for number, annotation in enumerate(content.get("annotations") or (), start=1)
        ]
    except KeyError as error:
        raise DatasetError(f"a record without the field {error}", where=where) from error
    class_ids, class_names = _classes(categories, metadata, where)
    return GroundTruth(
        dataset_name=dataset_name,
        images=images,
        annotations=annotations,
        class_names=class_names,
        class_ids=class_ids,
        categories=categories,
        groups=resolve_class_groups(metadata.get("class_groups") or {}, class_names, dataset_name),
    )


def resolve_class_groups(
    groups: Mapping[str, Sequence[str]], class_names: Sequence[str], dataset_name: str
) -> dict[str, tuple[int, ...]]:
    """Class names of every group as contiguous indices.

    Raises:
        DatasetError: a group is empty or names a class that the dataset does not have.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    resolved = {}
    for group, names in groups.items():
        where = f"class group {group!r} of dataset {dataset_name!r}"
        unknown = [name for name in names if name not in index_of]
        if unknown:
            raise DatasetError(
                f"unknown class {unknown[0]!r}",
                where=where,
                fix=f"name classes of the dataset: {', '.join(class_names[:5])}, ...",
            )
        if not names:
            raise DatasetError("no classes", where=where, fix="remove the group or name classes")
        resolved[group] = tuple(dict.fromkeys(index_of[name] for name in names))
    return resolved


def _id(record: Mapping[str, Any]) -> Any:
    return record["id"]


def _checked(
    annotation: Mapping[str, Any], number: int, images: Mapping[Any, Any], where: str
) -> dict[str, Any]:
    image_id, (x, y, width, height) = annotation["image_id"], annotation["bbox"]
    if image_id not in images:
        raise DatasetError(
            f"annotation {annotation.get('id', number)} belongs to unknown image {image_id!r}",
            where=where,
        )
    checked = {
        "id": number,
        "image_id": image_id,
        "category_id": annotation["category_id"],
        "bbox": [x, y, width, height],
        "area": annotation.get("area", width * height),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "ignore": int(annotation.get("ignore", 0)),
    }
    if annotation.get("segmentation"):
        checked["segmentation"] = annotation["segmentation"]
    return checked


def _classes(
    categories: Mapping[int, Mapping[str, Any]], metadata: Any, where: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """JSON ids and names of the classes in contiguous order."""
    names = metadata.get("thing_classes")
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is not None:
        ids = sorted(mapping, key=mapping.__getitem__)
        if sorted(mapping.values()) != list(range(len(ids))):
            raise DatasetError(
                "thing_dataset_id_to_contiguous_id does not number the classes 0, 1, 2, ...",
                where=where,
            )
    elif names is not None and len(names) != len(categories):
        ids = list(range(1, len(names) + 1))  # LVIS numbering; a file may list fewer classes
        if not set(categories) <= set(ids):
            raise DatasetError(
                f"{len(categories)} categories do not fit {len(names)} class names",
                where=where,
                fix="set thing_dataset_id_to_contiguous_id in the dataset's metadata",
            )
    else:
        ids = sorted(categories)
    if names is None:
        names = [categories[key]["name"] if key in categories else str(key) for key in ids]
    if len(names) != len(ids):
        raise DatasetError(f"{len(names)} class names for {len(ids)} category ids", where=where)
    return tuple(ids), tuple(names)
