"""The mapper of Detic's keys: augmentation and kind of annotation per dataset."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from detic_ext.data.tar_records import build_tar_reader
from ext_common.data.mapper import DetectionMapper
from ext_common.transforms import build_augmentations


def build_detic_mapper(cfg: CfgNode) -> DetectionMapper:
    """Training mapper of a configuration with several datasets (specification 6.2).

    With ``DATALOADER.USE_DIFF_BS_SIZE`` dataset i has its own input size and scale (for
    EfficientDetResizeCrop) or shortest and longest edges (for ResizeShortestEdge). With
    ``WITH_IMAGE_LABELS`` its samples carry ``DATASET_ANN[i]`` as ``ann_type``. Records with a
    ``tar_index`` are read from the archives of ``DATALOADER.USE_TAR_DATASET``.

    Raises:
        DatasetError: archives that cannot be used.
    """
    own_lists = None
    if cfg.DATALOADER.USE_DIFF_BS_SIZE:
        own_lists = [
            build_augmentations(cfg, True, **_own_sizes(cfg, source))
            for source in range(len(cfg.DATASETS.TRAIN))
        ]
    kinds = tuple(cfg.DATALOADER.DATASET_ANN) if cfg.WITH_IMAGE_LABELS else ()
    return DetectionMapper(
        cfg,
        is_train=True,
        augmentations=own_lists,
        ann_types=kinds,
        read_record=build_tar_reader(cfg),
    )


def _own_sizes(cfg: CfgNode, source: int) -> dict[str, Any]:
    loader = cfg.DATALOADER
    if cfg.INPUT.CUSTOM_AUG == "EfficientDetResizeCrop":
        return {
            "size": loader.DATASET_INPUT_SIZE[source],
            "scale": tuple(loader.DATASET_INPUT_SCALE[source]),
        }
    if cfg.INPUT.CUSTOM_AUG == "ResizeShortestEdge":
        return {
            "min_size": tuple(loader.DATASET_MIN_SIZES[source]),
            "max_size": loader.DATASET_MAX_SIZES[source],
        }
    return {}
