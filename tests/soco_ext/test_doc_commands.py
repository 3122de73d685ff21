"""The commands of docs/soco.md as they stand, on a few small pictures and with smaller models."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ext_common.config import load_config
from ext_common.data.dataset_registry import unregister
from ext_common.packages import PACKAGES, register_all
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.soco_ext.scenes import write_scenes
from tools import convert_weights, prepare_data, train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "soco.md").read_text(encoding="utf-8")
TOOLS: dict[str, Callable[[list[str]], int]] = {
    "tools/train_net.py": train_net.main,
    "tools/prepare_data.py": prepare_data.main,
    "tools/convert_weights.py": convert_weights.main,
}
# commands that other tests run: a part of the command, and the test
ELSEWHERE = {
    "benchmarks.claims.soco": "tests/claims/test_soco_claim.py",
    "benchmarks soco_step": "tests/test_benchmarks.py",
    "benchmarks ema": "tests/test_benchmarks.py",
    "benchmarks.view_shares": "tests/soco_ext/test_view_shares.py",
    "benchmarks.proposal_speed": "tests/test_benchmarks.py",
}
PRETRAINING = "SOCO.BASE_WIDTH 64 SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0"
DETECTOR = """
    MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN
    MODEL.FPN.NORM BN MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.NORM BN MODEL.ROI_BOX_HEAD.CONV_DIM 32
    MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_MASK_HEAD.NORM BN MODEL.ROI_MASK_HEAD.CONV_DIM 8
    MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 5
"""
TRAINING = """
    INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1
    SOLVER.STEPS () TEST.PRECISE_BN.NUM_ITER 1 DATALOADER.NUM_WORKERS 0
"""
# a part of the command, what is added to it; the first that fits
ADDED = {
    "soco-proposals": "--workers 1",
    "soco-views": "--count 2 --side 60",
    "soco-neighbours": "--rows 2 --count 2 --opts SOCO.BASE_WIDTH 64",
    "SoCo_tiny": PRETRAINING,
    "--check configs/soco/Mask_R50_FPN_1x": DETECTOR,
    "Mask_R50_FPN_1x": DETECTOR + TRAINING,
}
REPLACED = {"--num-gpus 8": ""}


def commands() -> list[str]:
    """All lines of the page's code blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    plain = [block for kind, block in blocks if not kind]
    return [line for block in plain for line in block.replace("\\\n", " ").strip().splitlines()]


def run(command: str) -> int:
    """Exit code of a command in this process."""
    for words, other in REPLACED.items():
        command = command.replace(words, other)
    interpreter, tool, *words = shlex.split(command, comments=True)
    if interpreter == "mkdir":
        Path(words[-1]).mkdir()
        return 0
    assert interpreter == "python"
    added = next((text for part, text in ADDED.items() if part in command), "")
    return TOOLS[tool]([*words, *added.split()])


def write_data(folder: Path) -> None:
    """Photos, the page's registry file, and a small COCO below datasets/."""
    write_scenes(folder / "photos", 4, size_hw=(90, 120))
    (registry,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (folder / "my.yaml").write_text(registry)
    classes: list[Any] = [c for c in COCO_CATEGORIES if c["isthing"]]
    categories = [{"id": c["id"], "name": c["name"]} for c in classes]
    for part, count in (("train2017", 20), ("val2017", 2)):
        labels = [box(n, n, categories[n % 80]["id"], [4, 4, 40, 50]) for n in range(1, count + 1)]
        data = content([(64, 72)] * count, [{**each, "iscrowd": 0} for each in labels])
        data["categories"] = categories
        write_images(folder / "datasets" / "coco" / part, data)
        write(folder / "datasets" / "coco" / "annotations" / f"instances_{part}.json", data)


@contextlib.contextmanager
def loggers_as_before() -> Iterator[None]:
    """The tools set logging up for a whole process, which is this one here."""
    loggers = [logging.getLogger(n) for n in ("fvcore", "detectron2", "ext_common", *PACKAGES)]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, int]]]:
    """The folder, and the exit code of every command in the page's order."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_data(folder)
    found = {}
    with contextlib.chdir(folder), loggers_as_before():
        for command in commands():
            if not any(part in command for part in ELSEWHERE):
                found[command] = run(command)
            # the page exports the published configuration's run
            made, wanted = Path("output/photos"), Path("output/SoCo/FPN_100ep")
            if made.exists() and not wanted.exists():
                shutil.copytree(made, wanted)
    yield folder, found
    for name in yaml.safe_load((folder / "my.yaml").read_text())["datasets"]:
        unregister(name)


def test_every_command_ends_well(codes: tuple[Path, dict[str, int]]) -> None:
    _, found = codes
    assert len(found) >= 8
    assert {command: code for command, code in found.items() if code} == {}


def test_commands_wrote_what_they_are_for(codes: tuple[Path, dict[str, int]]) -> None:
    folder, _ = codes
    for name in ("photos.proposals", "views.jpg", "neighbours.jpg", "models/soco_fpn.pkl"):
        assert (folder / name).stat().st_size > 0, name
    results = json.loads((folder / "output/SoCo/Mask_R50_FPN_1x/results.json").read_text())
    assert {"bbox", "segm"} <= results["coco_2017_val"].keys()


def test_shares_of_coco_are_where_the_configurations_look(
    codes: tuple[Path, dict[str, int]],
) -> None:
    folder, _ = codes
    register_all()
    for percent, images in ((5, 1), (10, 2)):
        cfg = load_config(ROOT / f"configs/soco/MiniCOCO_R50_FPN_{percent}pct.yaml", [])
        (registry,) = cfg.DATASETS.REGISTRY
        datasets = yaml.safe_load((folder / registry).read_text())["datasets"]
        assert tuple(datasets) == tuple(cfg.DATASETS.TRAIN)
        stored = (folder / registry).with_name(datasets[cfg.DATASETS.TRAIN[0]]["json"])
        assert len(json.loads(stored.read_text())["images"]) == images


def test_commands_that_other_tests_run_have_their_test() -> None:
    for part, test in ELSEWHERE.items():
        if any(part in command for command in commands()):
            assert (ROOT / test).is_file(), part
