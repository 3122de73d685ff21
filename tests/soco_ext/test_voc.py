"""PASCAL VOC from its own files to its own scores, with the C4 heads and precise statistics."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.evaluation.build import build_evaluator
from ext_common.packages import register_all
from tests.soco_ext.scenes import scene
from tests.soco_ext.test_doc_commands import loggers_as_before
from tests.soco_ext.tiny_soco import CONFIGS
from tools import train_net

SMALL = """
    MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 4
    MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.NORM BN MODEL.RPN.POST_NMS_TOPK_TRAIN 10
    MODEL.RPN.POST_NMS_TOPK_TEST 5 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
    SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1 SOLVER.STEPS () TEST.PRECISE_BN.NUM_ITER 1
    DATALOADER.NUM_WORKERS 0 DATASETS.TRAIN ('voc_2007_trainval',) DATASETS.TEST ('voc_2007_test',)
"""
BOX = "<xmin>5</xmin><ymin>6</ymin><xmax>50</xmax><ymax>48</ymax>"
KINDS = "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"


def write_voc(folder: Path) -> None:
    """Two pictures for training and two to score, as VOC 2007 has them."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for number in range(4):
        Image.fromarray(scene(number, (60, 80))).save(folder / "JPEGImages" / f"00{number}.jpg")
        size = "<size><width>80</width><height>60</height><depth>3</depth></size>"
        found = f"<object><name>cat</name>{KINDS}<bndbox>{BOX}</bndbox></object>"
        text = f"<annotation>{size}{found}</annotation>"
        (folder / "Annotations" / f"00{number}.xml").write_text(text)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000\n001\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("002\n003\n")


def test_training_and_scores(tmp_path: Path) -> None:
    write_voc(tmp_path / "datasets" / "VOC2007")
    words = ["--config-file", str(CONFIGS / "VOC_R50_C4.yaml"), "OUTPUT_DIR", "run"]
    small = [word.strip("'") if word == "''" else word for word in SMALL.split()]
    with contextlib.chdir(tmp_path), loggers_as_before():
        assert train_net.main([*words, *small]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"AP", "AP50", "AP75"} <= results["voc_2007_test"]["bbox"].keys()


def test_cityscapes_asks_for_its_own_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    register_all()
    cfg = load_config(CONFIGS / "Cityscapes_R50_FPN.yaml", [])
    (name,) = cfg.DATASETS.TEST
    with pytest.raises(ConfigError, match="pip install cityscapesscripts"):
        build_evaluator(cfg, name)
