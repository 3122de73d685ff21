"""The published recipes and the combinations: known keys, and detectors that train and detect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from ext_common.config import load_config
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from frozen_backbone_ext.config_checks import check_frozen_backbone
from frozen_backbone_ext.model_setup import frozen_trunk
from frozen_backbone_ext.schedule import check_a_schedule_in_images
from tests.frozen_backbone_ext.tiny_frozen import item

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "frozen_backbone"
CONFIGS = sorted(path.name for path in FOLDER.glob("*.yaml"))
REGIMES = ("frozen", "finetuned", "scratch", "adapters")
COMBOS = sorted(path.name for path in (ROOT / "configs" / "combos").glob("*.yaml"))

SMALL: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.DETECTOR_PARTS.NORM": "BN",
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.BACKBONE_FREEZE.WEIGHTS": "",
    "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.PYRAMID.WIDTH": 64,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.NASFPN.REPEATS": 1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS": False,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": "",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.CENTERNET.NUM_CLASSES": 3,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 10,
}


def test_every_regime_is_there_and_differs_in_few_lines() -> None:
    for neck in ("FPN", "NASFPN", "NASFPN-Cascade"):
        for trunk in ("R50", "R101", "RS101", "B7"):
            for regime in REGIMES:
                name = f"{neck}_{trunk}_{regime}.yaml"
                if (trunk, regime) == ("B7", "adapters"):
                    assert name not in CONFIGS
                    continue
                assert name in CONFIGS
                lines = [x for x in (FOLDER / name).read_text().splitlines() if x[:1] != "#"]
                assert len(lines) <= 9


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_known_and_possible(name: str) -> None:
    register_all()
    cfg = load_config(FOLDER / name)
    check_frozen_backbone(cfg, training=True)
    check_a_schedule_in_images(cfg, training=True)
    assert cfg.SOLVER.MAX_ITER > 1000
    stem = Path(name).stem
    if not stem.startswith("Base"):
        assert cfg.OUTPUT_DIR.endswith(f"/{stem}")
    assert (cfg.MODEL.BACKBONE_FREEZE.POLICY == "trunk") == (
        "finetuned" not in stem and "scratch" not in stem
    )


@pytest.mark.parametrize("name", COMBOS)
def test_combinations_train_and_detect(name: str) -> None:
    register_all()
    settings = [str(word) for pair in SMALL.items() for word in pair]
    cfg = load_config(ROOT / "configs" / "combos" / name, settings)
    torch.manual_seed(0)
    model = build_model(cfg)
    trunk = frozen_trunk(model)
    assert (trunk is not None) == (cfg.MODEL.BACKBONE_FREEZE.POLICY == "trunk")
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    for _ in range(2):
        picture: Any = item(128, masks=True) | {"ann_type": "box", "pos_category_ids": []}
        if not cfg.MODEL.MASK_ON:
            picture["instances"].remove("gt_masks")
        with EventStorage(0):
            losses = model([picture, picture])
        total = torch.stack(list(losses.values())).sum()
        assert total.isfinite()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()([{"image": picture["image"], "height": 128, "width": 128}])[0]
    assert found["instances"].image_size == (128, 128)


def test_four_combinations_are_there() -> None:
    assert len(COMBOS) >= 4
