"""The table of training recipes (specification section 7), one row per configuration file.

A row that starts from another one names it in ``after``: the model whose final weights it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LVIS, BASE, LVIS_COCO = "lvis_v1_train", "lvis_v1_train_norare", "lvis_v1_train+coco"
IN_L, IN_21K, CC = "imagenet_lvis_v1", "imagenet_lvis-22k", "cc3m_v1_train_tags"
COCO_BASE, COCO_CAPTIONS = "coco_zeroshot_train_oriorder", "coco_caption_train_tags"
RESOLUTIONS = {640: [640, 320], 896: [896, 448]}

C2_SETTINGS: dict[str, Any] = {
    "FP16": True,
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.CENTERNET.ONLY_PROPOSAL": True,
    "MODEL.CENTERNET.WITH_AGN_HM": True,
    "MODEL.CENTERNET.REG_WEIGHT": 1.0,
    "MODEL.CENTERNET.POS_WEIGHT": 0.5,
    "MODEL.CENTERNET.NEG_WEIGHT": 0.5,
    "MODEL.CENTERNET.IGNORE_HIGH_FP": 0.85,
    "MODEL.CENTERNET.INFERENCE_TH": 1e-4,
    "MODEL.CENTERNET.NMS_TH_TRAIN": 0.9,
    "MODEL.CENTERNET.NMS_TH_TEST": 0.9,
    "MODEL.CENTERNET.PRE_NMS_TOPK_TRAIN": 4000,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.CENTERNET.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 256,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.6],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.02,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.6, 0.7, 0.8],
    "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS": True,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE": True,
    "MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS": False,
    "DATALOADER.NUM_WORKERS": 8,
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "INPUT.FORMAT": "RGB",
    "INPUT.CUSTOM_AUG": "EfficientDetResizeCrop",
    "INPUT.SCALE_RANGE": [0.1, 2.0],
    "SOLVER.USE_CUSTOM_SOLVER": True,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}
"""What all CenterNet2 recipes share (sections 1.2, 1.3 and 7)."""

C4_SETTINGS: dict[str, Any] = {
    "FP16": False,
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS": True,
    "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE": False,
    "DATASETS.TEST": ["coco_generalized_zeroshot_val"],
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "SOLVER.USE_CUSTOM_SOLVER": False,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 1e-3,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
"""What all OV-COCO recipes share (sections 1.4, 5 and 7)."""

VILD_SETTINGS: dict[str, Any] = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1e-4,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.5],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "naiveSyncBN_N",
    "MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS": True,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_FACTOR": 0.067,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}
"""What the ViLD-style recipes share (section 7)."""


@dataclass(frozen=True)
class Recipe:
    """Facts of one row.

    Args:
        backbone: R50, R18, CXT, SwinB, C4 or ViLD: which list of weights the model has.
        train: training datasets.
        batch: total of a box-supervised run; of a mixed one what corresponds to it at 8 GPUs.
        size: side of the square of box batches; the short edge for C4.
        lr: base learning rate.
        iterations: of the whole training.
        after: name of the file whose model it continues.
        ann: kind of annotation of each dataset, for mixed runs.
        ratio: share of samples of each dataset, for mixed runs.
        per_gpu: pictures per GPU of each dataset, for mixed runs.
        more: other keys and their values.
    """

    backbone: str
    train: tuple[str, ...]
    batch: int
    size: int
    lr: float
    iterations: int
    after: str = ""
    ann: tuple[str, ...] = ()
    ratio: tuple[int, ...] = ()
    per_gpu: tuple[int, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether batches without boxes take part."""
        return bool(self.ann)


def _r50(train: tuple[str, ...], **mixed: Any) -> Recipe:
    return Recipe("R50", train, 64, 640, 2e-4, 90000, **mixed)


def _swin(train: tuple[str, ...], **mixed: Any) -> Recipe:
    return Recipe("SwinB", train, 32, 896, 1e-4, 180000, **mixed)


def _small(backbone: str, train: tuple[str, ...], **mixed: Any) -> Recipe:
    return Recipe(backbone, train, 32, 640, 1e-4, 180000, **mixed)


def _coco(train: tuple[str, ...], **mixed: Any) -> Recipe:
    return Recipe("C4", train, 16, 800, 0.02, 90000, **mixed)


def _mixed(after: str, per_gpu: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {
        "after": after,
        "ann": (more.pop("ann", ("box", "image"))),
        "ratio": more.pop("ratio", (1, 4)),
        "per_gpu": per_gpu,
        "more": tuple((key.replace("__", "."), value) for key, value in more.items()),
    }


_HEAD = "MODEL__ROI_BOX_HEAD__"
_21K = {
    "MODEL__DYNAMIC_CLASSIFIER": True,
    "MODEL__ROI_HEADS__NUM_CLASSES": 22047,
    "DATALOADER__USE_TAR_DATASET": True,
    f"{_HEAD}USE_FED_LOSS": False,
}
_CAPTION = {
    "MODEL__WITH_CAPTION": True,
    "MODEL__SYNC_CAPTION_BATCH": True,
    f"{_HEAD}ADD_IMAGE_BOX": True,
}
_LI, _LBASEI, _21KI = (LVIS, IN_L), (BASE, IN_L), (LVIS_COCO, IN_21K)
_TAGS = (COCO_BASE, COCO_CAPTIONS)

RECIPES: dict[str, Recipe] = {
    "BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x": _r50((BASE,)),
    "BoxSup-C2_L_CLIP_R5021k_640b64_4x": _r50((LVIS,)),
    "BoxSup-C2_LCOCO_CLIP_R5021k_640b64_4x": _r50((LVIS_COCO,)),
    "BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x": _swin((BASE,)),
    "BoxSup-C2_L_CLIP_SwinB_896b32_4x": _swin((LVIS,)),
    "BoxSup-C2_LCOCO_CLIP_SwinB_896b32_4x": _swin((LVIS_COCO,)),
    "BoxSup-C2_LCOCO_CLIP_R18_640b32_4x": _small("R18", (LVIS_COCO,)),
    "BoxSup-C2_LCOCO_CLIP_CXT21k_640b32_4x": _small("CXT", (LVIS_COCO,)),
    "BoxSup_OVCOCO_CLIP_R50_1x": _coco((COCO_BASE,)),
    "BoxSup_ViLD_200e": Recipe("ViLD", (BASE,), 64, 896, 2e-4, 368750),
    "Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size": _r50(
        _LI, **_mixed("BoxSup-C2_L_CLIP_R5021k_640b64_4x", (8, 32))
    ),
    "Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size": _r50(
        _LBASEI, **_mixed("BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x", (8, 32))
    ),
    "Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_predicted": _r50(
        _LBASEI,
        **_mixed(
            "BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x",
            (8, 32),
            **{f"{_HEAD}IMAGE_LABEL_LOSS": "max_score"},
        ),
    ),
    "Detic_LbaseCCimg_CLIP_R5021k_640b64_4x_ft4x_max-size": _r50(
        (BASE, CC), **_mixed("BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x", (8, 32))
    ),
    "Detic_LbaseCCcapimg_CLIP_R5021k_640b64_4x_ft4x_max-size": _r50(
        (BASE, CC),
        **_mixed(
            "BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x",
            (8, 32),
            ann=("box", "captiontag"),
            **_CAPTION,
            **{f"{_HEAD}NEG_CAP_WEIGHT": 0.125, f"{_HEAD}WS_NUM_PROPS": 128},
        ),
    ),
    "Detic_LI_CLIP_SwinB_896b32_4x_ft4x_max-size": _swin(
        _LI, **_mixed("BoxSup-C2_L_CLIP_SwinB_896b32_4x", (4, 16))
    ),
    "Detic_LbaseI_CLIP_SwinB_896b32_4x_ft4x_max-size": _swin(
        _LBASEI, **_mixed("BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x", (4, 16))
    ),
    "Detic_LI21k_CLIP_SwinB_896b32_4x_ft4x_max-size": _swin(
        (LVIS, IN_21K),
        **_mixed("BoxSup-C2_L_CLIP_SwinB_896b32_4x", (4, 16), ratio=(1, 16), **_21K),
    ),
    "Detic_LCOCOI21k_CLIP_SwinB_896b32_4x_ft4x_max-size": _swin(
        _21KI, **_mixed("BoxSup-C2_LCOCO_CLIP_SwinB_896b32_4x", (4, 16), ratio=(1, 16), **_21K)
    ),
    "Detic_LCOCOI21k_CLIP_R5021k_640b32_4x_ft4x_max-size": _small(
        "R50", _21KI, **_mixed("BoxSup-C2_LCOCO_CLIP_R5021k_640b64_4x", (4, 16), **_21K)
    ),
    "Detic_LCOCOI21k_CLIP_R18_640b32_4x_ft4x_max-size": _small(
        "R18", _21KI, **_mixed("BoxSup-C2_LCOCO_CLIP_R18_640b32_4x", (4, 16), **_21K)
    ),
    "Detic_LCOCOI21k_CLIP_CXT21k_640b32_4x_ft4x_max-size": _small(
        "CXT", _21KI, **_mixed("BoxSup-C2_LCOCO_CLIP_CXT21k_640b32_4x", (4, 16), **_21K)
    ),
    "Detic_OVCOCO_CLIP_R50_1x_max-size": _coco(
        _TAGS, **_mixed("BoxSup_OVCOCO_CLIP_R50_1x", (2, 8), **{f"{_HEAD}WS_NUM_PROPS": 32})
    ),
    "Detic_OVCOCO_CLIP_R50_1x_caption": _coco(
        _TAGS,
        **_mixed(
            "BoxSup_OVCOCO_CLIP_R50_1x",
            (2, 8),
            ann=("box", "caption"),
            **_CAPTION,
            **{f"{_HEAD}NEG_CAP_WEIGHT": 1.0, f"{_HEAD}WS_NUM_PROPS": 1},
        ),
    ),
    "Detic_OVCOCO_CLIP_R50_1x_max-size_caption": _coco(
        _TAGS,
        **_mixed(
            "BoxSup_OVCOCO_CLIP_R50_1x",
            (2, 8),
            ann=("box", "captiontag"),
            **_CAPTION,
            **{f"{_HEAD}NEG_CAP_WEIGHT": 1.0, f"{_HEAD}WS_NUM_PROPS": 32},
        ),
    ),
    "Detic_ViLD_200e": Recipe(
        "ViLD",
        _LBASEI,
        64,
        896,
        2e-4,
        368750,
        ann=("box", "image"),
        ratio=(1, 4),
        per_gpu=(8, 32),
    ),
}
