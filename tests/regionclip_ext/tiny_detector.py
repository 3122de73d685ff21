"""A two-branch detector of a few thousand parameters, for tests that need no golden weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

import regionclip_ext  # noqa: F401 - registers the model parts
from ext_common.config import load_config
from tests.regionclip_ext.golden_models import CONFIGS

DIM = 16
ENCODER = {"WIDTH": 4, "LAYERS": [1, 1, 1, 1], "HEADS": 2, "EMBED_DIM": DIM, "RESOLUTION": 64}


def write_offline(folder: Path) -> Path:
    """YAML of a tiny C4 detector."""
    path = folder / "offline.yaml"
    path.write_text(
        "MODEL:\n  DEVICE: cpu\n"
        "  RESNETS: {STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 4, WIDTH_PER_GROUP: 4}\n"
        "  RPN: {PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 20}\nVERSION: 2\n"
    )
    return path


def tiny_options(folder: Path, **keys: Any) -> list[str]:
    """KEY VALUE pairs that make any file of configs/regionclip tiny; ``__`` stands for a dot."""
    pairs: dict[str, Any] = {f"MODEL.CLIP.CUSTOM_ENCODER.{k}": v for k, v in ENCODER.items()}
    pairs |= {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.CLIP.IMAGE_ENCODER": "custom",
        "MODEL.CLIP.TEXT_EMB_DIM": DIM,
        "MODEL.CLIP.TEXT_EMB_PATH": None,
        "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH": None,
        "MODEL.CLIP.BB_RPN_WEIGHTS": None,
        "MODEL.CLIP.OFFLINE_RPN_CONFIG": str(write_offline(folder)),
        "MODEL.CLIP.OFFLINE_RPN_LSJ_PRETRAINED": False,
        "MODEL.CLIP.LANG_ENCODER.WIDTH": 8,
        "MODEL.CLIP.LANG_ENCODER.HEADS": 2,
        "MODEL.CLIP.LANG_ENCODER.LAYERS": 1,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 4,
        "MODEL.TEXT_ENCODER.NAME": "hash",
        "MODEL.TEXT_ENCODER.DIM": DIM,
        "INPUT.MIN_SIZE_TEST": 64,
    }
    pairs |= {key.replace("__", "."): value for key, value in keys.items()}
    return [str(word) for pair in pairs.items() for word in pair]


def tiny_config(folder: Path, name: str = "Base_C4.yaml", **keys: Any) -> CfgNode:
    """A published configuration in tiny."""
    return load_config(CONFIGS / name, tiny_options(folder, **keys))
