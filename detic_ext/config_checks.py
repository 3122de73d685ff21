"""Combinations of Detic's keys that cannot work, refused before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from detic_ext.losses.factory import image_label_loss_class
from detic_ext.modeling.supervision import ANN_TYPES, CAPTION_TYPES
from ext_common.clip_weights import find_clip_weights
from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY
from ext_common.text_encoder import HASH_ENCODER

_RCNN = "CustomRCNN"
_META_ARCHITECTURES = (_RCNN, "DeformableDetr")
_PER_DATASET_KEYS = ("DATASET_RATIO", "USE_RFS", "DATASET_ANN")
_PER_SIZE_KEYS = {
    "EfficientDetResizeCrop": ("DATASET_BS", "DATASET_INPUT_SIZE", "DATASET_INPUT_SCALE"),
    "ResizeShortestEdge": ("DATASET_BS", "DATASET_MIN_SIZES", "DATASET_MAX_SIZES"),
}


@CONFIG_CHECK_REGISTRY.register()
def check_detic(cfg: CfgNode, training: bool) -> None:
    """Check the keys that only Detic reads.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    if cfg.MODEL.META_ARCHITECTURE not in _META_ARCHITECTURES:
        return
    rcnn = cfg.MODEL.META_ARCHITECTURE == _RCNN
    if rcnn:
        _check_head(cfg)
    if training:
        if rcnn:
            _check_dynamic_classifier(cfg)
            _check_captions(cfg)
        _check_image_labels(cfg)
        _check_lists(cfg)
        _check_archives(cfg)


def _check_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    if head.MULT_PROPOSAL_SCORE and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE needs proposal scores between 0 and 1; "
            "detectron2's RPN gives logits",
            fix="set it False, or use MODEL.PROPOSAL_GENERATOR.NAME CenterNet",
        )
    if not head.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "Detic's box regression is class-agnostic",
            fix="set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
        )
    if cfg.MODEL.WITH_CAPTION and not head.USE_ZEROSHOT_CLS:
        raise ConfigError(
            "MODEL.WITH_CAPTION compares regions with text, an ordinary classifier cannot",
            fix="set MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True",
        )
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise ConfigError(
            "Detic's masks are class-agnostic", fix="set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True"
        )


def _check_dynamic_classifier(cfg: CfgNode) -> None:
    if not cfg.MODEL.DYNAMIC_CLASSIFIER:
        return
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS:
        raise ConfigError(
            "MODEL.DYNAMIC_CLASSIFIER chooses the classes of a step already",
            where="MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
            fix="set it False",
        )
    if cfg.MODEL.WITH_CAPTION:
        raise ConfigError(
            "MODEL.DYNAMIC_CLASSIFIER and MODEL.WITH_CAPTION exclude each other",
            fix="set one of them False",
        )


def _kinds(cfg: CfgNode) -> list[str]:
    """Kind of annotation of each training dataset."""
    return list(cfg.DATALOADER.DATASET_ANN)[: len(cfg.DATASETS.TRAIN)]


def _check_image_labels(cfg: CfgNode) -> None:
    kinds = _kinds(cfg)
    mixed = cfg.DATALOADER.SAMPLER_TRAIN == "MultiDatasetSampler"
    for kind in kinds:
        if kind not in ANN_TYPES:
            raise ConfigError(
                f"unknown kind of annotation {kind!r}",
                where="DATALOADER.DATASET_ANN",
                fix=f"one of {', '.join(ANN_TYPES)}",
            )
    weak = mixed and any(kind != "box" for kind in kinds)
    if weak and not cfg.WITH_IMAGE_LABELS:
        raise ConfigError(
            f"DATALOADER.DATASET_ANN asks for {kinds} and WITH_IMAGE_LABELS is False",
            fix="set WITH_IMAGE_LABELS True",
        )
    if cfg.WITH_IMAGE_LABELS and not weak:
        raise ConfigError(
            "WITH_IMAGE_LABELS is True and no training dataset has image labels",
            where="DATALOADER",
            fix="set SAMPLER_TRAIN MultiDatasetSampler and DATASET_ANN, e.g. ['box', 'image'], "
            "or WITH_IMAGE_LABELS False",
        )
    if not weak:
        return
    if not cfg.DATALOADER.MULTI_DATASET_GROUPING:
        raise ConfigError(
            "batches of boxes and of image labels cannot be mixed",
            fix="set DATALOADER.MULTI_DATASET_GROUPING True",
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        raise ConfigError(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS would remove every picture without boxes",
            fix="set it False",
        )
    head = cfg.MODEL.ROI_BOX_HEAD
    loss = image_label_loss_class(head.IMAGE_LABEL_LOSS)
    if loss.needs_image_box and not head.ADD_IMAGE_BOX:
        raise ConfigError(
            f"image-label loss {head.IMAGE_LABEL_LOSS!r} needs the box of the whole picture",
            fix="set MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX True",
        )
    if loss.needs_proposal_logits and not head.WITH_SOFTMAX_PROP:
        raise ConfigError(
            f"image-label loss {head.IMAGE_LABEL_LOSS!r} needs its second branch",
            fix="set MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP True",
        )


def _check_captions(cfg: CfgNode) -> None:
    model, kinds = cfg.MODEL, _kinds(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN != "MultiDatasetSampler":
        kinds = []
    used = sorted(set(kinds) & set(CAPTION_TYPES))
    if used and not model.WITH_CAPTION:
        raise ConfigError(
            f"DATALOADER.DATASET_ANN asks for {', '.join(used)} and MODEL.WITH_CAPTION is False",
            fix="set MODEL.WITH_CAPTION True, or make the kind 'image'",
        )
    if not model.WITH_CAPTION:
        return
    if not used:
        raise ConfigError(
            "MODEL.WITH_CAPTION is True and no training dataset has captions",
            where="DATALOADER.DATASET_ANN",
            fix="make a kind 'caption' or 'captiontag', or set MODEL.WITH_CAPTION False",
        )
    if not model.ROI_BOX_HEAD.ADD_IMAGE_BOX:
        raise ConfigError(
            "captions are compared with the box of the whole picture",
            fix="set MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX True",
        )
    text = model.TEXT_ENCODER
    if not model.WEIGHTS and text.NAME != HASH_ENCODER and not text.ALLOW_DOWNLOAD:
        find_clip_weights(text.NAME, text.WEIGHTS)
    if model.SYNC_CAPTION_BATCH:
        _check_caption_batches(cfg, kinds)


def _check_caption_batches(cfg: CfgNode, kinds: Sequence[str]) -> None:
    """All processes add as many rows to the captions of a step, whatever their batches are."""
    loader, ratio = cfg.DATALOADER, cfg.MODEL.CAP_BATCH_RATIO
    sizes = list(loader.DATASET_BS)[: len(kinds)] if loader.USE_DIFF_BS_SIZE else [1] * len(kinds)
    rows = {
        size if kind in (*CAPTION_TYPES, "image") else size * ratio
        for kind, size in zip(kinds, sizes, strict=False)
    }
    if len(rows) > 1:
        raise ConfigError(
            f"with MODEL.SYNC_CAPTION_BATCH a batch without boxes must be {ratio} times as large "
            f"as one with boxes, got {sizes} for {list(kinds)}",
            where="MODEL.CAP_BATCH_RATIO",
            fix="make it the ratio of DATALOADER.DATASET_BS (1 without USE_DIFF_BS_SIZE)",
        )


def _check_archives(cfg: CfgNode) -> None:
    loader = cfg.DATALOADER
    if loader.USE_TAR_DATASET and loader.SAMPLER_TRAIN != "MultiDatasetSampler":
        raise ConfigError(
            f"the loader of {loader.SAMPLER_TRAIN} reads no tar archives",
            where="DATALOADER.USE_TAR_DATASET",
            fix="set DATALOADER.SAMPLER_TRAIN MultiDatasetSampler (it takes a single dataset too), "
            "or USE_TAR_DATASET False",
        )


def _check_lists(cfg: CfgNode) -> None:
    loader = cfg.DATALOADER
    weights = cfg.MODEL.DATASET_LOSS_WEIGHT
    if weights and len(weights) < len(cfg.DATASETS.TRAIN):
        raise ConfigError(
            f"MODEL.DATASET_LOSS_WEIGHT has {len(weights)} entries for "
            f"{len(cfg.DATASETS.TRAIN)} datasets",
            fix="give one factor per name in DATASETS.TRAIN, or none",
        )
    if loader.SAMPLER_TRAIN != "MultiDatasetSampler":
        return
    names = list(cfg.DATASETS.TRAIN)
    sizes = _PER_SIZE_KEYS.get(cfg.INPUT.CUSTOM_AUG, ("DATASET_BS",))
    keys = _PER_DATASET_KEYS + (sizes if loader.USE_DIFF_BS_SIZE else ())
    for key in keys:
        values: Sequence[Any] = loader[key]
        if len(values) < len(names):
            raise ConfigError(
                f"DATALOADER.{key} has {len(values)} entries for {len(names)} datasets: {names}",
                fix="give one entry per name in DATASETS.TRAIN",
            )
