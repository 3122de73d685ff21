"""Open-vocabulary annotation files, the datasets that read them, and the authors' YAML files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.packages import register_all
from regionclip_ext.config_checks import _check_lvis_base
from regionclip_ext.evaluation.datasets import LVIS_BASE
from regionclip_ext.evaluation.ovd_coco import NOVEL_NAMES, split_groups
from tools import prepare_data

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "regionclip"
CATEGORIES = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]


def _annotated(categories: list[dict[str, Any]], path: Path) -> Path:
    """One picture per class, and one that shows nothing."""
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9}
        for n in range(len(categories) + 1)
    ]
    if "frequency" in categories[0]:
        images = [image | {"neg_category_ids": [1]} for image in images]
    annotations = [
        {"id": n, "image_id": n, "category_id": c["id"], "bbox": [1, 1, 5, 5], "area": 25,
         "iscrowd": n % 2}
        for n, c in enumerate(categories)
    ]  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def test_coco_is_split_into_48_17_and_65_classes(tmp_path: Path) -> None:
    source = _annotated(CATEGORIES, tmp_path / "instances_val2017.json")
    words = ["regionclip-splits", "--coco", str(source), "--output", str(tmp_path)]
    assert prepare_data.main(words) == 0
    for split, count in (("b", 48), ("t", 17), ("all", 65)):
        part = json.loads((tmp_path / f"ovd_ins_val2017_{split}.json").read_text())
        names = [category["name"] for category in part["categories"]]
        assert len(names) == len(part["images"]) == len(part["annotations"]) == count
        unseen = {c["name"] for c in part["categories"] if c["split"] == "unseen"}
        assert unseen == {"b": set(), "t": set(NOVEL_NAMES), "all": set(NOVEL_NAMES)}[split]
        assert bool(split_groups(names)) == (split == "all")


def test_lvis_loses_its_rare_classes_and_counts_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = [{"id": 3 * n + 1, "name": f"c{n}", "frequency": "rcf"[n % 3]} for n in range(6)]
    source = _annotated(categories, tmp_path / "lvis_v1_train.json")
    words = ["regionclip-splits", "--lvis", str(source), "--output", str(tmp_path / "out")]
    assert prepare_data.main(words) != 0
    assert "instead of 866" in capsys.readouterr().err
    assert prepare_data.main([*words, "--any-count"]) == 0
    part = json.loads((tmp_path / "out" / "lvis_v1_train_base.json").read_text())
    assert [c["name"] for c in part["categories"]] == ["c1", "c2", "c4", "c5"]
    assert len(part["images"]) == 4
    assert not any("neg_category_ids" in image for image in part["images"])


def test_published_dataset_names_are_registered() -> None:
    for split in ("all", "b", "t"):
        for part in ("train", "test"):
            name = f"coco_2017_ovd_{split}_{part}"
            assert name in DatasetCatalog
            assert MetadataCatalog.get(name).evaluator_type == "coco_ovd"
    assert LVIS_BASE in DatasetCatalog
    for part in ("train", "val"):
        found, plain = (MetadataCatalog.get(f"lvis_v1_{part}{end}") for end in ("_fullysup", ""))
        assert found.name in DatasetCatalog
        assert found.evaluator_type == plain.evaluator_type == "lvis"
        assert Path(found.json_file) == Path(plain.json_file)
        assert Path(found.image_root) == Path(plain.image_root)


def test_the_authors_name_of_the_base_classes_is_explained() -> None:
    register_all()
    words = ["DATASETS.TRAIN", "('lvis_v1_train',)", "MODEL.CLIP.BB_RPN_WEIGHTS", ""]
    cfg = load_config(CONFIGS / "ovd_lvis_RN50.yaml", words)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 866
    with pytest.raises(ConfigError, match="DATASETS.TRAIN.*not rare.*set it lvis_v1_train_base"):
        _check_lvis_base(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1203
    _check_lvis_base(cfg)


AUTHORS = """
MODEL:
  META_ARCHITECTURE: "CLIPFastRCNN"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  CLIP:
    OPENSET_TEST_NUM_CLASSES: 65
    CROP_REGION_TYPE: "RPN"
    OFFLINE_RPN_NMS_THRESH: 0.9
    BB_RPN_WEIGHTS: "/home/someone/rpn.pth"
INPUT_DIR: "./datasets/custom_images"
DATASETS:
  FACTORY_TRAIN: ("CLIPImgTxtPairTSVDataset",)
  MAX_SEQ_LENGTH: 35
AUG:
  GAUSSIAN_BLUR: 0
  TEST:
    IMAGE_SIZE: [800]
  TRAIN:
    IMAGE_SIZE: [800]
    MAX_SIZE: 1333
"""


def test_files_of_the_authors_kind_load_and_a_repeated_block_is_named(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(AUTHORS)
    cfg = load_config(path)
    assert cfg.MODEL.CLIP.OFFLINE_RPN_NMS_THRESH == 0.9
    assert cfg.AUG.TRAIN.MAX_SIZE == 1333
    path.write_text(AUTHORS + "INPUT_DIR: elsewhere\n")
    with pytest.raises(ConfigError, match="INPUT_DIR.*twice"):
        load_config(path)
