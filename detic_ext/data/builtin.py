"""The published dataset names (specification 6.5), below ``DETECTRON2_DATASETS``.

Registration only: no file is opened before a dataset or its classes are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from ext_common.data.dataset_registry import register_dataset
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.lvis_json import LoadOptions

# name -> image root, annotation file, both below the datasets folder
_LVIS = {
    "lvis_v1_train_norare": ("coco", "lvis/lvis_v1_train_norare.json"),
    "lvis_v1_train+coco": ("coco", "lvis/lvis_v1_train+coco_mask.json"),
    "cc3m_v1_val": ("cc3m/validation", "cc3m/val_image_info.json"),
    "cc3m_v1_train": ("cc3m/training", "cc3m/train_image_info.json"),
    "cc3m_v1_train_tags": ("cc3m/training", "cc3m/train_image_info_tags.json"),
}
_LVIS_IMAGE_LABELS = {
    "imagenet_lvis_v1": (
        "imagenet/ImageNet-LVIS",
        "imagenet/annotations/imagenet_lvis_image_info.json",
    ),
}
_COCO_TAGS = {
    "cc3m_coco_train_tags": ("cc3m/training", "cc3m/coco_train_image_info_tags.json"),
    "coco_caption_train_tags": (
        "coco/train2017",
        "coco/annotations/captions_train2017_tags_allcaps.json",
    ),
}
_COCO_ALL_CLASSES = {
    "coco_zeroshot_train_oriorder": (
        "coco/train2017",
        "coco/zero-shot/instances_train2017_seen_2_oriorder.json",
    ),
    "coco_generalized_zeroshot_val": (
        "coco/val2017",
        "coco/zero-shot/instances_val2017_all_2_oriorder.json",
    ),
}
# class lists that stand in the files alone
_LVIS_OWN_CLASSES = {
    "lvis_v1_train_22k": ("coco", "lvis/lvis_v1_train_lvis-22k.json"),
}
_COCO_OWN_CLASSES = {
    "coco_zeroshot_train": ("coco/train2017", "coco/zero-shot/instances_train2017_seen_2.json"),
    "coco_zeroshot_val": ("coco/val2017", "coco/zero-shot/instances_val2017_unseen_2.json"),
    "coco_not_zeroshot_val": ("coco/val2017", "coco/zero-shot/instances_val2017_seen_2.json"),
    "objects365_v2_train": (
        "objects365/train",
        "objects365/annotations/zhiyuan_objv2_train_fixname_fixmiss.json",
    ),
    "objects365_v2_val": (
        "objects365/val",
        "objects365/annotations/zhiyuan_objv2_val_fixname.json",
    ),
    "objects365_v2_val_rare": (
        "objects365/val",
        "objects365/annotations/zhiyuan_objv2_val_fixname_rare.json",
    ),
}
_IMAGE_LABELS_OWN_CLASSES = {
    "imagenet_lvis-22k": (
        "imagenet/ImageNet-LVIS",
        "imagenet/annotations/imagenet-22k_image_info_lvis-22k.json",
    ),
}
_OPENIMAGES = {
    "oid_train": ("oid/images", "oid/annotations/oid_challenge_2019_train_bbox.json"),
    "oid_val_expanded": (
        "oid/images/validation",
        "oid/annotations/oid_challenge_2019_val_expanded.json",
    ),
    "oid_val_expanded_rare": (
        "oid/images/validation",
        "oid/annotations/oid_challenge_2019_val_expanded_rare.json",
    ),
}


def register_builtin_datasets(root: str) -> list[str]:
    """Register the published names that are still free.

    Args:
        root: folder that the datasets lie below.

    Returns:
        Names that were registered.
    """
    lvis_classes = tuple(get_lvis_instances_meta("lvis_v1")["thing_classes"])
    coco_classes = tuple(c["name"] for c in COCO_CATEGORIES if c["isthing"])
    kinds = (
        (_LVIS, "lvis", "lvis", lvis_classes),
        (_LVIS_IMAGE_LABELS, "image_labels", "imagenet", lvis_classes),
        (_COCO_TAGS, "lvis", "lvis", coco_classes),
        (_COCO_ALL_CLASSES, "coco", "coco", coco_classes),
        (_LVIS_OWN_CLASSES, "lvis", "lvis", ()),
        (_COCO_OWN_CLASSES, "coco", "coco", ()),
        (_IMAGE_LABELS_OWN_CLASSES, "image_labels", "imagenet", ()),
        (_OPENIMAGES, "lvis", "oid", ()),
    )
    registered = []
    for datasets, kind, evaluator, classes in kinds:
        for name, (images, json) in datasets.items():
            if name in DatasetCatalog:
                continue
            spec = DatasetSpec(
                name=name,
                type=kind,
                images=str(Path(root) / images),
                json=str(Path(root) / json),
                evaluator=evaluator,
                groups=_coco_groups() if name == "coco_generalized_zeroshot_val" else {},
                load=_published_options(kind),
                known_classes=classes,
            )
            register_dataset(spec)
            registered.append(name)
    return registered


def _published_options(kind: str) -> LoadOptions:
    """The published files have a few empty boxes, and users link image folders into place."""
    return LoadOptions(
        bad_boxes="drop",
        labels_required=kind == "image_labels",
        short_coco_names=kind == "lvis",
        allow_links=True,
    )


def _coco_groups() -> dict[str, tuple[str, ...]]:
    names = {category["id"]: str(category["name"]) for category in COCO_CATEGORIES}
    return {
        "base": tuple(names[key] for key in BASE_IDS),
        "novel": tuple(names[key] for key in NOVEL_IDS),
    }


register_builtin_datasets(os.getenv("DETECTRON2_DATASETS", "datasets"))
