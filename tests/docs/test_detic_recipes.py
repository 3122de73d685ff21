"""The recipes of docs/detic.md run as they stand, on a few small pictures and with smaller models."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model

from detic_ext.data.preparation.builtin_categories import lvis_categories
from ext_common.config import load_config
from ext_common.data.dataset_registry import unregister
from ext_common.packages import PACKAGES
from tests.ext_common.annotation_files import box, content, write, write_images
from tools import convert_weights, demo, prepare_data, train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "detic.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL))
TOOLS: dict[str, Callable[[list[str]], int]] = {
    "tools/train_net.py": train_net.main,
    "tools/demo.py": demo.main,
    "tools/prepare_data.py": prepare_data.main,
    "tools/convert_weights.py": convert_weights.main,
}
CLASSES = ("cup", "plate", "teapot")
MANY = (*CLASSES, *(f"thing {number}" for number in range(60)))
TITLES = [
    "Train on my boxes",
    "Train on my class folders",
    "Add 1,000 classes from image tags",
    "Evaluate the authors' weights",
    "Change the vocabulary",
]
SMALL = """
    MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 64 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8
    MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 10
    INPUT.TRAIN_SIZE 64 INPUT.TEST_SIZE 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0
"""
OVERRIDES = {
    "BoxSup_demo": SMALL,
    "Detic_demo": SMALL + "DATALOADER.DATASET_BS [1,2] DATALOADER.DATASET_INPUT_SIZE [64,48]",
    # the authors' layout, with a smaller trunk
    "Detic_LbaseI": SMALL
    + """MODEL.TIMM.BASE_NAME resnet18 MODEL.CENTERNET.NUM_BOX_CONVS 1 MODEL.CENTERNET.POST_NMS_TOPK_TEST 8
    INPUT.MIN_SIZE_TEST 64""",
}


class Recipes:
    """Runs the recipes in the page's order, each once; later ones use what earlier ones wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: dict[str, list[int]] = {}

    def run(self, title: str) -> list[int]:
        """Exit codes of a recipe's commands."""
        for earlier in TITLES[: TITLES.index(title) + 1]:
            if earlier not in self.codes:
                with contextlib.chdir(self.folder):
                    self.codes[earlier] = [run(line) for line in commands(RECIPES[earlier])]
        return self.codes[title]

    def results(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / run / "results.json").read_text())
        return found


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for kind, block in blocks if kind == language]


def commands(text: str) -> list[str]:
    blocks = fenced(text, "")
    return [line for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]


def run(command: str) -> int:
    interpreter, tool, *words = shlex.split(command)
    assert interpreter == "python"
    extra = next((text for name, text in OVERRIDES.items() if name in command), "")
    return TOOLS[tool]([*words, *extra.split()])


def labels() -> list[dict[str, Any]]:
    return [box(1, 1, 10, [4, 4, 30, 40]), box(2, 2, 11, [20, 8, 30, 30])]


def write_data(folder: Path) -> None:
    """What the page's registry file names, and a small LVIS below datasets/."""
    (registry,) = fenced(PAGE, "yaml")
    (folder / "my.yaml").write_text(registry)
    sizes = [(64, 72)] * 2
    photos = content(sizes, labels(), CLASSES)
    write_images(folder / "photos", photos)
    write(folder / "instances_val.json", photos)
    write(folder / "instances_train.json", photos)
    write(folder / "other.json", content(sizes, labels(), ("saucer", "tea pot")))
    tags = content(sizes, classes=MANY)
    for image, label in zip(tags["images"], (12, 40), strict=True):
        image["pos_category_ids"] = [label]
    write(folder / "tags.json", tags)
    write_images(folder / "web", tags)
    for name in ("cup", "teapot"):
        write_images(folder / "folders" / name, photos, seed=3)
    lvis = photos | {"categories": lvis_categories()}
    for image in lvis["images"]:
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
        image["coco_url"] = "http://images.cocodataset.org/val2017/" + image["file_name"]
    write(folder / "datasets" / "lvis" / "lvis_v1_val.json", lvis)
    write_images(folder / "datasets" / "coco" / "val2017", photos)
    rows_CD = np.random.default_rng(0).normal(size=(1203, 512)).astype(np.float16)
    (folder / "datasets" / "metadata").mkdir()
    np.save(folder / "datasets" / "metadata" / "lvis_v1_clip_a+cname.npy", rows_CD)


def write_authors_weights() -> None:
    """A checkpoint in the authors' layout where the recipe looks for theirs."""
    (path,) = re.findall(r"--path (\S+)", RECIPES["Evaluate the authors' weights"])
    config = f"configs/detic/{Path(path).stem}.yaml"
    opts = OVERRIDES["Detic_LbaseI"].split()
    model = build_model(load_config(config, [*opts, "MODEL.WEIGHTS", ""]))
    Path(path).parent.mkdir()
    torch.save({"model": model.state_dict(), "iteration": 89999}, path)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipes]:
    """A folder as a user has it: the repository's configurations, and data."""
    names = ("fvcore", "detectron2", "ext_common", *PACKAGES)
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_data(folder)
    with contextlib.chdir(folder):
        write_authors_weights()
    yield Recipes(folder)
    for name in yaml.safe_load((folder / "my.yaml").read_text())["datasets"]:
        unregister(name)
    # the tools set logging up for a whole process, which is this one here
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


def test_the_page_has_these_recipes() -> None:
    assert list(RECIPES) == TITLES
    assert all(commands(text) for text in RECIPES.values())
    (tags,) = fenced(PAGE, "json")
    assert json.loads(tags)["images"][0]["pos_category_ids"] == [4]


@pytest.mark.parametrize(("title", "run"), [(TITLES[0], "boxes"), (TITLES[1], "folders")])
def test_training_recipes(recipes: Recipes, title: str, run: str) -> None:
    assert recipes.run(title) == [0]
    scores = recipes.results(f"output/{run}")["my_val"]["bbox"]
    assert {"AP50", "AP50-group-base", "AP50-group-novel"} <= scores.keys()
    names = torch.load(recipes.folder / "output" / run / "model_final.pth")["vocabulary"]["names"]
    assert tuple(names) == CLASSES


def test_classes_from_tags(recipes: Recipes) -> None:
    assert recipes.run(TITLES[2]) == [0]
    assert "AP50" in recipes.results("output/tags")["my_val"]["bbox"]
    stored = torch.load(recipes.folder / "output" / "tags" / "model_final.pth")
    assert tuple(stored["vocabulary"]["names"]) == MANY


def test_the_authors_weights(recipes: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.run(TITLES[3]) == [0, 0]
    (results,) = recipes.folder.glob("output/Detic/*/results.json")
    assert {"bbox", "segm"} <= json.loads(results.read_text())["lvis_v1_val"].keys()


def test_other_vocabularies(recipes: Recipes) -> None:
    assert recipes.run(TITLES[4]) == [0, 0, 0]
    assert (recipes.folder / "found" / "1.jpg").is_file()
    assert recipes.results("output/both").keys() == {"my_val", "my_other"}
