"""Training loaders with Copy-Paste: uniform, or with repeat factors for rare classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from ext_common.data.loader import TrainLoader, loader_seed, make_train_loader, plain_plan
from ext_common.data.mapper import DetectionMapper
from ext_common.data.records import (
    Records,
    check_masks,
    load_records,
    object_classes,
    serialised,
)
from ext_common.data.sampling import (
    IndexStream,
    PermutationStream,
    RepeatFactorStream,
    repeat_factors,
)
from ext_common.errors import ConfigError
from ext_common.registries import TRAIN_LOADER_REGISTRY
from frozen_backbone_ext.data.copy_paste_mapper import CopyPasteMapper
from frozen_backbone_ext.data.jitter import LargeScaleJitter
from frozen_backbone_ext.data.paste import PasteRule

UNIFORM = "CopyPasteTrainingSampler"
REPEATED = "CopyPasteRepeatFactorTrainingSampler"


def build_copy_paste_loader(cfg: CfgNode) -> TrainLoader:
    """Batches of ``INPUT.TRAIN_SIZE`` squares with pasted objects.

    Raises:
        ConfigError, DatasetError: settings or data that cannot work, as objects without masks.
    """
    records = load_records(cfg)
    _need_masks(cfg, records)
    seed = loader_seed(cfg)
    factors_N: NDArray[np.float64] | None = None
    stream: IndexStream = PermutationStream(len(records), seed)
    if cfg.DATALOADER.SAMPLER_TRAIN == REPEATED:
        options = cfg.DATALOADER
        root = options.get("REPEAT_SQRT", True)
        factors_N = repeat_factors(object_classes(records), options.REPEAT_THRESHOLD, root=root)
        stream = RepeatFactorStream(factors_N, seed)
    mapper = make_mapper(cfg, serialised(records), factors_N)
    return make_train_loader(cfg, records, mapper, plain_plan(cfg, records, stream))


def make_mapper(
    cfg: CfgNode, records: Records, factors_N: NDArray[np.float64] | None = None
) -> CopyPasteMapper:
    """The mapper of ``INPUT.COPY_PASTE`` over large-scale jitter; padding is the pixel mean.

    Args:
        cfg: configuration.
        records: what sources are drawn from.
        factors_N: how often the sampler shows each of them.
    """
    options = cfg.INPUT.COPY_PASTE
    flip = {"horizontal": 0.5, "none": 0.0}.get(cfg.INPUT.RANDOM_FLIP)
    if flip is None:
        raise ConfigError(
            f"{cfg.INPUT.RANDOM_FLIP!r} with Copy-Paste",
            where="INPUT.RANDOM_FLIP",
            fix="horizontal or none",
        )
    jitter = LargeScaleJitter(
        cfg.INPUT.TRAIN_SIZE,
        tuple(cfg.INPUT.SCALE_RANGE),
        flip=flip,
        pad_colour=tuple(cfg.MODEL.PIXEL_MEAN),
    )
    mapper = DetectionMapper(
        is_train=True,
        augmentations=[[jitter]],
        image_format=cfg.INPUT.FORMAT,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        mask_format="bitmask",
        recompute_boxes=True,
        trust_files=cfg.INPUT.TRUST_FILES,
    )
    return CopyPasteMapper(
        mapper,
        records,
        factors_N=factors_N,
        rule=PasteRule(
            options.BOX_RULE, options.BOX_THRESHOLD, options.AREA_THRESHOLD, options.BLEND
        ),
        prob=options.PROB,
        max_objects=options.MAX_OBJECTS,
        keep_masks=cfg.MODEL.MASK_ON,
        max_instances=cfg.INPUT.MAX_INSTANCES,
    )


def _need_masks(cfg: CfgNode, records: Any) -> None:
    try:
        check_masks(records, list(cfg.DATASETS.TRAIN), polygons=False)
    except ConfigError as error:
        raise ConfigError(
            "Copy-Paste cuts objects out by their masks, and an annotation has a box without one",
            where=error.where,
            fix=f"take a dataset with masks, or another DATALOADER.SAMPLER_TRAIN than "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}",
        ) from error


for _sampler in (UNIFORM, REPEATED):
    # the registry's public method takes the name of the function
    TRAIN_LOADER_REGISTRY._do_register(_sampler, build_copy_paste_loader)
