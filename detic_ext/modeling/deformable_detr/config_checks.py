"""Keys that the Deformable-DETR variant cannot follow, refused before anything is built."""

from __future__ import annotations

from detectron2.config import CfgNode

from detic_ext.modeling.deformable_detr.options import TransformerOptions
from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY

META_ARCHITECTURE = "DeformableDetr"
KINDS = ("box", "image", "captiontag")
"""Kinds of annotation that the model learns from."""


@CONFIG_CHECK_REGISTRY.register()
def check_deformable_detr(cfg: CfgNode, training: bool) -> None:
    """Check what only this model reads, and what it does not read at all.

    Raises:
        ConfigError: naming the key and what to change.
    """
    if cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
        return
    TransformerOptions.from_config(cfg)
    _refuse_other_parts(cfg)
    node = cfg.MODEL.DETR
    if node.NUM_CLASSES < 1:
        raise ConfigError(f"{node.NUM_CLASSES} classes", where="MODEL.DETR.NUM_CLASSES")
    if node.TWO_STAGE and not node.WITH_BOX_REFINE:
        raise ConfigError(
            "boxes of the first stage must be refined",
            where="MODEL.DETR.TWO_STAGE",
            fix="set MODEL.DETR.WITH_BOX_REFINE True",
        )
    if training and cfg.WITH_IMAGE_LABELS:
        _check_kinds(cfg)


def _refuse_other_parts(cfg: CfgNode) -> None:
    refused = {
        "MODEL.MASK_ON": (cfg.MODEL.MASK_ON, "it predicts no masks: set it False"),
        "MODEL.VOCABULARY": (
            cfg.MODEL.VOCABULARY,
            "its classes are trained: set MODEL.DETR.NUM_CLASSES and leave this empty",
        ),
        "MODEL.DETR.PRE_NORM": (
            cfg.MODEL.DETR.PRE_NORM,
            "its layers normalise after each part: set it False",
        ),
        "MODEL.DETR.FROZEN_WEIGHTS": (
            cfg.MODEL.DETR.FROZEN_WEIGHTS,
            "nothing is loaded from there: use MODEL.WEIGHTS",
        ),
        "MODEL.WITH_CAPTION": (cfg.MODEL.WITH_CAPTION, "it learns from no captions"),
        "MODEL.DYNAMIC_CLASSIFIER": (
            cfg.MODEL.DYNAMIC_CLASSIFIER,
            "its classes are fixed: set it False",
        ),
        "MODEL.DATASET_LOSS_WEIGHT": (
            list(cfg.MODEL.DATASET_LOSS_WEIGHT),
            "losses of all datasets weigh the same: leave it empty",
        ),
        "FP16": (cfg.FP16, "half precision is SOLVER.AMP.ENABLED here"),
    }
    for key, (value, fix) in refused.items():
        if value:
            raise ConfigError(
                f"{META_ARCHITECTURE} cannot follow {key} {value}", where=key, fix=fix
            )


def _check_kinds(cfg: CfgNode) -> None:
    for kind in list(cfg.DATALOADER.DATASET_ANN)[: len(cfg.DATASETS.TRAIN)]:
        if kind not in KINDS:
            raise ConfigError(
                f"{META_ARCHITECTURE} cannot learn from {kind!r}",
                where="DATALOADER.DATASET_ANN",
                fix=f"one of {', '.join(KINDS)}",
            )
