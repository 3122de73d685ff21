"""The published recipes as files: they load, say what the table says, and build those models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from ext_common.config import get_config, load_config
from ext_common.packages import register_all
from ext_common.registries import CONFIG_CHECK_REGISTRY
from ext_common.weights_match import match_weights
from ext_common.yaml_safe import read_yaml, read_yaml_with_base
from tests.detic_ext.published_keys import DEFAULTS, MIXED, PARTS
from tests.detic_ext.published_recipes import (
    C2_SETTINGS,
    C4_SETTINGS,
    RECIPES,
    RESOLUTIONS,
    VILD_SETTINGS,
    Recipe,
)
from tests.golden_cases import golden_root

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "detic"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if "DeformDETR" not in path.name)
NAMED = sorted(RECIPES.items())
CENTERNET2 = ("R50", "SwinB", "R18", "CXT")
WEIGHT_LISTS = {
    "R50": "state_dict_R50.json",
    "SwinB": "state_dict_SwinB.json",
    "R18": "state_dict_extra_R18_LCOCOI21k.json",
    "CXT": "state_dict_extra_CXT_LCOCOI21k.json",
    "C4": "state_dict_OVCOCO.json",
}


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    register_all()


def recipe_config(name: str) -> CfgNode:
    """The configuration of one file."""
    return load_config(FOLDER / f"{name}.yaml")


def build_without_memory(cfg: CfgNode) -> nn.Module:
    """The model on the meta device, where tensors have shapes only."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.TIMM.PRETRAINED = False
    # columns made without a file; their names and shapes are the same
    cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH = "rand"
    with torch.device("meta"):
        return build_model(cfg)


@cache
def published_shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published model, without the counters that older files lack."""
    shapes = json.loads((golden_root() / "detic" / file).read_text(encoding="utf-8"))
    return {
        name: tuple(shape)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


def test_every_row_of_the_table_has_a_file() -> None:
    assert {path.stem for path in FILES if not path.stem.startswith("Base")} == set(RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_holds_only_what_differs_from_its_base(path: Path) -> None:
    content = read_yaml(path)
    base = content.pop("_BASE_", None)
    if base is None:
        return
    repeated = _repeated(content, read_yaml_with_base(FOLDER / base))
    assert not repeated


def _repeated(content: dict[str, Any], base: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in content.items():
        if key in base and isinstance(value, dict):
            found += _repeated(value, base[key], f"{prefix}{key}.")
        elif key in base and value == base[key]:
            found.append(f"{prefix}{key}")
    return found


def _rows(*backbones: str, mixed: bool = False) -> Any:
    """Parametrisation over rows of the table."""
    rows = [
        (name, recipe)
        for name, recipe in NAMED
        if recipe.backbone in backbones and (recipe.mixed or not mixed)
    ]
    return pytest.mark.parametrize(("name", "recipe"), rows, ids=[name for name, _ in rows])


def check_values(cfg: CfgNode, expected: dict[str, Any]) -> None:
    """Compare keys (dotted names) with what the table says."""
    assert {key: _plain(_value(cfg, key)) for key in expected} == expected


def _value(cfg: CfgNode, name: str) -> Any:
    node: Any = cfg
    for part in name.split("."):
        node = node[part]
    return node


def _plain(value: Any) -> Any:
    """Values without the difference between tuples and lists, which yacs ignores."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@_rows(*CENTERNET2, "C4", "ViLD")
def test_schedule_and_data_are_those_of_the_table(name: str, recipe: Recipe) -> None:
    cfg = recipe_config(name)
    expected = {
        "DATASETS.TRAIN": list(recipe.train),
        "SOLVER.IMS_PER_BATCH": recipe.batch,
        "SOLVER.BASE_LR": recipe.lr,
        "SOLVER.MAX_ITER": recipe.iterations,
        "WITH_IMAGE_LABELS": recipe.mixed,
        **dict(recipe.more),
    }
    check_values(cfg, expected)
    if recipe.after:
        weights = Path(recipe_config(recipe.after).OUTPUT_DIR).parent / recipe.after
        assert Path(cfg.MODEL.WEIGHTS) == weights / "model_final.pth"


@_rows(*CENTERNET2, "C4", "ViLD", mixed=True)
def test_mixed_batches_are_those_of_the_table(name: str, recipe: Recipe) -> None:
    expected = {
        "SAMPLER_TRAIN": "MultiDatasetSampler",
        "MULTI_DATASET_GROUPING": True,
        "USE_DIFF_BS_SIZE": True,
        "FILTER_EMPTY_ANNOTATIONS": False,
        "DATASET_ANN": list(recipe.ann),
        "DATASET_RATIO": list(recipe.ratio),
        "DATASET_BS": list(recipe.per_gpu),
    }
    if recipe.backbone == "C4":
        expected["DATASET_MIN_SIZES"] = [[800, 800], [400, 400]]
        expected["DATASET_MAX_SIZES"] = [1333, 667]
        expected["USE_RFS"] = [False, False]
    else:
        expected["DATASET_INPUT_SIZE"] = RESOLUTIONS[recipe.size]
        expected["DATASET_INPUT_SCALE"] = [[0.1, 2.0], [0.5, 1.5]]
        expected["USE_RFS"] = [True, False]
    check_values(recipe_config(name).DATALOADER, expected)
    assert recipe.per_gpu[0] * 8 == recipe.batch


@_rows(*CENTERNET2)
def test_centernet2_recipes_share_their_settings(name: str, recipe: Recipe) -> None:
    cfg = recipe_config(name)
    dynamic = cfg.MODEL.DYNAMIC_CLASSIFIER
    check_values(cfg, C2_SETTINGS | {"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": not dynamic})
    check_values(
        cfg,
        {
            "INPUT.TRAIN_SIZE": recipe.size,
            "SOLVER.WARMUP_ITERS": 1000 if recipe.after else 10000,
            "SOLVER.WARMUP_FACTOR": 1e-3 if recipe.after else 1e-4,
        },
    )


@_rows("C4")
def test_open_vocabulary_coco_recipes_share_their_settings(name: str, recipe: Recipe) -> None:
    check_values(recipe_config(name), C4_SETTINGS | {"INPUT.MIN_SIZE_TRAIN": [recipe.size] * 2})


@_rows("ViLD")
def test_vild_recipes_share_their_settings(name: str, recipe: Recipe) -> None:
    check_values(recipe_config(name), VILD_SETTINGS | {"INPUT.TRAIN_SIZE": recipe.size})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_datasets_exist_and_keys_fit_together(path: Path) -> None:
    cfg = load_config(path)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert name in DatasetCatalog
    if cfg.MODEL.RESET_CLS_TESTS:
        tests = len(cfg.DATASETS.TEST)
        assert len(cfg.MODEL.TEST_CLASSIFIERS) == len(cfg.MODEL.TEST_NUM_CLASSES) == tests
    CONFIG_CHECK_REGISTRY.get("check_detic")(cfg, True)


@pytest.mark.golden
@_rows(*CENTERNET2, "C4")
def test_models_have_the_golden_names_and_shapes(name: str, recipe: Recipe) -> None:
    cfg = recipe_config(name)
    expected = dict(published_shapes(WEIGHT_LISTS[recipe.backbone]))
    if cfg.MODEL.WITH_CAPTION:
        expected |= published_shapes("state_dict_extra_caption_text_encoder.json")
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for stage in ("",) if recipe.backbone == "C4" else ("0.", "1.", "2."):
        predictor = f"roi_heads.box_predictor.{stage}"
        expected[f"{predictor}cls_score.zs_weight"] = (512, classes + 1)
        expected.pop(f"{predictor}freq_weight", None)
        if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS or cfg.MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS:
            expected[f"{predictor}freq_weight"] = (classes,)
    model = build_without_memory(cfg)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    counters = {key for key in found if key.endswith("num_batches_tracked")}
    assert {key: found[key] for key in found.keys() - counters} == expected


PUBLISHED_FILES = {
    "BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x": "state_dict_R50.json",
    "BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x": "state_dict_SwinB.json",
    "Detic_LCOCOI21k_CLIP_R18_640b32_4x_ft4x_max-size": "state_dict_extra_R18_LCOCOI21k.json",
    "Detic_LCOCOI21k_CLIP_CXT21k_640b32_4x_ft4x_max-size": "state_dict_extra_CXT_LCOCOI21k.json",
    "BoxSup_OVCOCO_CLIP_R50_1x": "state_dict_OVCOCO.json",
}


@pytest.mark.golden
@pytest.mark.parametrize("counters", [True, False], ids=["with counters", "without counters"])
@pytest.mark.parametrize(("name", "file"), PUBLISHED_FILES.items(), ids=list(PUBLISHED_FILES))
def test_golden_files_cover_the_models_whatever_the_classes(
    name: str, file: str, counters: bool
) -> None:
    shapes = json.loads((golden_root() / "detic" / file).read_text(encoding="utf-8"))
    stored = {
        key: torch.zeros(()).expand(shape)  # as large as published, without memory
        for key, shape in shapes.items()
        if counters or not key.endswith("num_batches_tracked")
    }
    own = build_without_memory(recipe_config(name)).state_dict(keep_vars=True)
    report, pairs = match_weights(stored, own, by_suffix=False)
    assert report.complete, report.problems()
    assert {key for key in own if not key.endswith("num_batches_tracked")} <= set(pairs)
    # a model with three classes of its own
    other = {key: value[:, :4] if "zs_weight" in key else value for key, value in own.items()}
    report, _ = match_weights(stored, other, by_suffix=False, keep_vocabulary=True)
    assert report.complete, report.problems()


@pytest.mark.parametrize("name", ["BoxSup_ViLD_200e", "Detic_ViLD_200e"])
def test_the_vild_recipe_builds_a_cascade_of_one_stage(name: str) -> None:
    model = build_without_memory(recipe_config(name))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["roi_heads.box_predictor.0.cls_score.zs_weight"] == (512, 1204)
    assert shapes["roi_heads.box_predictor.0.freq_weight"] == (1203,)
    assert shapes["roi_heads.box_head.0.fc1.weight"] == (1024, 256 * 7 * 7)
    assert shapes["roi_heads.box_head.0.conv4.weight"] == (256, 256, 3, 3)
    assert shapes["roi_heads.mask_head.predictor.weight"] == (1, 256, 1, 1)
    assert not any(key.startswith("roi_heads.box_predictor.1") for key in shapes)


def test_published_keys_have_their_published_defaults(tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text(DEFAULTS, encoding="utf-8")
    ours, theirs = get_config(), load_config(tmp_path / "defaults.yaml")
    assert _plain(theirs) == _plain(ours)


def test_published_keys_without_effect_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text(PARTS, encoding="utf-8")
    assert _plain(load_config(tmp_path / "parts.yaml")) == _plain(get_config())


def test_a_file_in_the_authors_style_loads_with_its_base(tmp_path: Path) -> None:
    base = DEFAULTS + PARTS.split("MODEL:")[0]
    (tmp_path / "Base.yaml").write_text(base, encoding="utf-8")
    (tmp_path / "mixed.yaml").write_text(MIXED, encoding="utf-8")
    cfg = load_config(tmp_path / "mixed.yaml")
    assert cfg.DATASETS.TRAIN == ("lvis_v1_train+coco", "imagenet_lvis-22k")
    expected = {
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.STEPS": [60000, 80000],
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
        "DATALOADER.DATASET_INPUT_SCALE": [[0.1, 2.0], [0.5, 1.5]],
        "FP16": True,
        "FIND_UNUSED_PARAM": False,
    }
    check_values(cfg, expected)
    for whole in (cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, cfg.MODEL.ROI_BOX_HEAD.NORM_TEMP):
        assert isinstance(whole, float)
    CONFIG_CHECK_REGISTRY.get("check_detic")(cfg, True)


def test_detectron2_itself_reads_the_files() -> None:
    name = "Detic_LbaseCCcapimg_CLIP_R5021k_640b64_4x_ft4x_max-size"
    cfg = get_config()
    cfg.merge_from_file(str(FOLDER / f"{name}.yaml"))
    assert _plain(cfg) == _plain(recipe_config(name))
