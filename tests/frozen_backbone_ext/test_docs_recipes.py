"""The recipes of docs/frozen_backbone.md run as they stand, on a few pictures and a small trunk."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ext_common.data.dataset_registry import unregister
from ext_common.packages import PACKAGES
from tests.ext_common.annotation_files import box, content, write, write_images
from tools import train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "frozen_backbone.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL))
SMALL = """
    MODEL.DEVICE cpu MODEL.DETECTOR_PARTS.NORM BN MODEL.TIMM.BASE_NAME resnet18 MODEL.TIMM.NORM FrozenBN
    MODEL.TIMM.PRETRAINED False MODEL.BACKBONE_FREEZE.ALLOW_RANDOM True MODEL.PYRAMID.WIDTH 8
    MODEL.NASFPN.REPEATS 1 MODEL.ROI_BOX_HEAD.CONV_DIM 8 MODEL.ROI_BOX_HEAD.FC_DIM 8
    MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 10
    INPUT.TRAIN_SIZE 128 INPUT.TEST_SIZE 128 INPUT.SCALE_RANGE [0.9,1.1] SOLVER.IMS_PER_BATCH 2
    SOLVER.TRAIN_ITER 2 DATALOADER.NUM_WORKERS 0 SOLVER.AMP.ENABLED False
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a user has it: the repository's configurations, and data."""
    names = ("fvcore", "detectron2", "ext_common", *PACKAGES)
    loggers = [logging.getLogger(name) for name in names]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    made = tmp_path_factory.mktemp("recipes")
    (made / "configs").symlink_to(ROOT / "configs")
    (registry,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (made / "my.yaml").write_text(registry)
    objects = [box(1, 1, 10, [4, 4, 30, 40]), box(2, 2, 11, [20, 8, 30, 30])]
    photos = content([(64, 72)] * 2, objects, ("cup", "plate"))
    write_images(made / "photos", photos)
    for name in ("instances_train.json", "instances_val.json"):
        write(made / name, photos)
    yield made
    for name in ("my_train", "my_val"):
        with contextlib.suppress(Exception):
            unregister(name)
    for log, (level, propagate, handlers) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.propagate = propagate
        log.handlers = handlers


def _run(title: str, folder: Path) -> list[int]:
    (block,) = re.findall(r"^```\n(.*?)^```$", RECIPES[title], flags=re.MULTILINE | re.DOTALL)
    codes = []
    for line in block.replace("\\\n", " ").strip().splitlines():
        python, tool, *words = shlex.split(line)
        assert (python, tool) == ("python", "tools/train_net.py")
        small = SMALL
        if "INPUT.SCALE_RANGE" in words:  # the recipe needs its own
            small = small.replace("INPUT.SCALE_RANGE [0.9,1.1]", "")
        with contextlib.chdir(folder):
            codes.append(train_net.main([*words, *small.split()]))
    return codes


def test_recipes_run_in_the_order_of_the_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = list(RECIPES)
    assert titles[0] == "Prove that it is frozen"
    for title in titles:
        assert _run(title, folder) == [0], (title, capsys.readouterr().err[-800:])
        if title == titles[0]:
            assert capsys.readouterr().out.count("[ok]") == 5
    first, *second_stages = (
        torch.load(folder / "output" / name / "model_final.pth", weights_only=True)["model"]
        for name in ("frozen", "stage2", "stage2-stored")
    )
    for last in second_stages:
        changed = {key for key, value in last.items() if not torch.equal(value, first[key])}
        assert changed
        assert all("cls_score" in key for key in changed)
    assert list((folder / "output" / "regions").rglob("*.pt"))
    adapters = torch.load(folder / "output/adapters/model_final.pth", weights_only=True)["model"]
    assert [key for key in adapters if "layer4" in key and "adapter.conv1x1" in key]
    assert not [key for key in adapters if "layer2" in key and "adapter" in key]
