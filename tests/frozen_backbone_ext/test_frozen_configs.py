"""The published recipes and the combinations: known keys, and detectors that train and detect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from ext_common.config import finish_config, load_config
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from frozen_backbone_ext.config_checks import check_frozen_backbone
from frozen_backbone_ext.model_setup import frozen_trunk
from frozen_backbone_ext.modeling.adapters import Adapter
from frozen_backbone_ext.modeling.trunk import find_trunk, trunk_hash
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
                assert name in CONFIGS
                lines = [x for x in (FOLDER / name).read_text().splitlines() if x[:1] != "#"]
                assert len(lines) <= 9


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_known_and_possible(name: str) -> None:
    register_all()
    cfg = load_config(FOLDER / name)
    finish_config(cfg, training=True)
    check_frozen_backbone(cfg, training=True)
    assert cfg.SOLVER.MAX_ITER > 1000
    stem = Path(name).stem
    if not stem.startswith("Base"):
        assert cfg.OUTPUT_DIR.endswith(f"/{stem}")
    assert (cfg.MODEL.BACKBONE_FREEZE.POLICY == "trunk") == (
        "finetuned" not in stem and "scratch" not in stem
    )


@pytest.mark.parametrize("detector", ["FPN", "NASFPN-Cascade"])
@pytest.mark.parametrize("percent", [1, 5, 10, 25, 50])
def test_shares_of_the_data_differ_in_the_data_only(detector: str, percent: int) -> None:
    for regime in ("frozen", "finetuned"):
        register_all()
        whole = load_config(FOLDER / f"{detector}_R50_{regime}.yaml")
        part = load_config(FOLDER / f"{detector}_R50_{regime}_{percent}pct.yaml")
        assert round(118272 * percent / 100) == part.SOLVER.IMAGES.PER_EPOCH
        # as tools/prepare_data.py coco-subset calls it
        name = f"instances_train2017_{percent:g}pct_seed0"
        assert list(part.DATASETS.TRAIN) == [name]
        assert list(part.DATASETS.REGISTRY) == [f"datasets/coco/annotations/{name}.yaml"]
        part.SOLVER.IMAGES.PER_EPOCH = whole.SOLVER.IMAGES.PER_EPOCH
        part.DATASETS = whole.DATASETS
        part.OUTPUT_DIR = whole.OUTPUT_DIR
        assert part == whole


@pytest.mark.parametrize("name", COMBOS)
def test_combinations_train_and_detect(name: str) -> None:
    cfg = _combination(name)
    model = build_model(cfg)
    trunk = frozen_trunk(model)
    assert (trunk is not None) == (cfg.MODEL.BACKBONE_FREEZE.POLICY == "trunk")
    _train_and_detect(cfg, model)


@pytest.mark.parametrize("name", COMBOS)
def test_adapters_in_the_other_packages_detectors(name: str) -> None:
    plain = _combination(name)
    cfg = _combination(
        name,
        *("MODEL.ADAPTERS.BACKBONE", plain.MODEL.BACKBONE.NAME),
        *("MODEL.BACKBONE.NAME", "build_adapted_backbone", "MODEL.BACKBONE_FREEZE.POLICY", "trunk"),
    )
    model = build_model(cfg)
    assert "*.adapter.*" in model.optional_weights
    trunk = find_trunk(model)[1]
    for key, value in trunk.state_dict().items():
        if key.endswith("bn3.weight"):  # timm starts every branch as zero
            value.fill_(0.5)
    before, weights = trunk_hash(trunk), [m.conv1x1.weight for m in _adapters(trunk)]
    assert len(weights) == 16
    assert not any(weight.any() for weight in weights)
    _train_and_detect(cfg, model)
    assert any(weight.any() for weight in weights)
    assert all(weight.grad is not None for weight in weights)
    assert trunk_hash(trunk) == before


def test_a_trunk_from_a_file_of_its_own_in_the_other_packages_detectors(tmp_path: Path) -> None:
    """As RegionCLIP's weights come into Detic: checkpoints of the detector may do without them."""
    name = "Detic_RegionCLIP.yaml"
    first = find_trunk(build_model(_combination(name)))[1]
    path = tmp_path / "regionclip.pth"
    torch.save({f"visual.{key}": value + 1 for key, value in first.state_dict().items()}, path)
    opts = ["MODEL.BACKBONE_FREEZE.WEIGHTS", str(path), "MODEL.BACKBONE_FREEZE.SAVE", "False"]
    model = build_model(_combination(name, *opts))
    place, trunk = find_trunk(model)
    for key, value in first.state_dict().items():
        assert torch.equal(trunk.state_dict()[key], value + 1)
    assert f"{place}.*" in model.optional_weights


def _adapters(network: Any) -> list[Adapter]:
    return [module for module in network.modules() if isinstance(module, Adapter)]


def _combination(name: str, *opts: str) -> CfgNode:
    register_all()
    torch.manual_seed(0)
    settings = [str(word) for pair in SMALL.items() for word in pair]
    return load_config(ROOT / "configs" / "combos" / name, [*settings, *opts])


def _train_and_detect(cfg: CfgNode, model: Any) -> None:
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
