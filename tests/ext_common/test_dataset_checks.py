from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ext_common.config import get_config
from ext_common.data.class_names import check_same_order, folded
from ext_common.data.dataset_checks import check_datasets, check_files, check_test_dataset
from ext_common.data.dataset_registry import unregister
from ext_common.errors import DatasetError
from ext_common.packages import register_all
from tests.ext_common.annotation_files import content, write

ConfigOf = Callable[..., Any]


@pytest.fixture
def config_of(tmp_path: Path) -> Iterator[ConfigOf]:
    """A config with datasets of the given class names; ``sets`` names those in TRAIN and TEST."""
    names: list[str] = []

    def make(train: str, test: str = "", **classes: tuple[str, ...]) -> Any:
        (tmp_path / "images").mkdir()
        entries = {}
        for name, found in classes.items():
            write(tmp_path / f"{name}.json", content([(8, 9)], classes=found))
            entries[name] = {"type": "lvis", "json": f"{name}.json", "images": "images"}
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"datasets": entries}))
        names.extend(entries)
        cfg = get_config()
        cfg.DATASETS.REGISTRY = (str(tmp_path / "sets.yaml"),)
        cfg.DATASETS.TRAIN = tuple(train.split())
        cfg.DATASETS.TEST = tuple(test.split())
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        return cfg

    yield make
    for name in names:
        unregister(name)


ABC, ABCD, BAC = ("a", "b", "c"), ("a", "b", "c", "d"), ("b", "a", "c")


def test_datasets_that_fit(config_of: ConfigOf) -> None:
    check_datasets(config_of("chk_a", "chk_b", chk_a=ABC, chk_b=("A", "b", "c")), training=True)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("chk_x", "chk_abc", r"DATASETS\.TRAIN: unknown dataset 'chk_x'"),
        ("chk_abc", "chk_abcc", r"DATASETS\.TEST: unknown dataset 'chk_abcc' .*chk_abc"),
        ("chk_abcd", "", r"'chk_abcd': 4 classes, but MODEL\.ROI_HEADS\.NUM_CLASSES stands for 3"),
        ("chk_ab", "", r"'chk_ab': 2 classes, but .* 3 \(set MODEL\.ROI_HEADS\.NUM_CLASSES 2"),
        ("chk_abc", "chk_abcd", "'chk_abcd': 4 classes"),
        ("chk_abc chk_bac", "", "'chk_bac': class 0 is 'b' here and 'a' in 'chk_abc'"),
        ("chk_abc", "chk_bac", "'chk_bac': class 0 is 'b' here"),
        ("chk_abc", "chk_xyz", "'chk_xyz': class 0 is 'x' here"),
    ],
)
def test_datasets_that_do_not_fit(config_of: ConfigOf, train: str, test: str, message: str) -> None:
    cfg = config_of(
        train,
        test,
        chk_abc=ABC,
        chk_ab=ABC[:2],
        chk_abcd=ABCD,
        chk_bac=BAC,
        chk_xyz=("x", "y", "z"),
    )
    with pytest.raises(DatasetError, match=message):
        check_datasets(cfg, training=True)


def test_a_dataset_may_have_the_first_classes_of_another(config_of: ConfigOf) -> None:
    cfg = config_of("chk_ab chk_abc", chk_ab=("a", "b"), chk_abc=ABC, chk_ba=("b", "a"))
    check_datasets(cfg, training=True)
    cfg.DATASETS.TRAIN = ("chk_ba", "chk_abc")
    with pytest.raises(DatasetError, match="'chk_ba': class 0 is 'b'"):
        check_datasets(cfg, training=True)


def test_a_vocabulary_sets_the_number_of_classes(config_of: ConfigOf) -> None:
    cfg = config_of("chk_v", chk_v=ABCD)
    cfg.MODEL.VOCABULARY = "dataset:chk_v"
    check_datasets(cfg, training=True)
    cfg.MODEL.VOCABULARY = "a, b"
    with pytest.raises(DatasetError, match=r"4 classes, but MODEL\.VOCABULARY stands for 2") as e:
        check_datasets(cfg, training=True)
    assert "dataset:chk_v" in e.value.fix


def test_models_without_classes_take_any_dataset(config_of: ConfigOf) -> None:
    cfg = config_of("chk_n", chk_n=ABCD)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    check_datasets(cfg, training=True)


def test_files_are_looked_for_before_training(config_of: ConfigOf, tmp_path: Path) -> None:
    cfg = config_of("chk_f", "chk_f", chk_f=ABC)
    (tmp_path / "images").rmdir()
    with pytest.raises(DatasetError, match=r"'chk_f': missing: .*images .*README"):
        check_datasets(cfg, training=True)
    (tmp_path / "chk_f.json").unlink()
    with pytest.raises(DatasetError, match=r"images, .*chk_f\.json"):
        check_test_dataset(cfg, "chk_f")
    # a model is used on machines that have no dataset
    check_datasets(cfg, training=False)


def test_files_of_datasets_that_others_registered(tmp_path: Path) -> None:
    register_coco_instances("chk_d2", {}, str(tmp_path / "none.json"), str(tmp_path))
    try:
        with pytest.raises(DatasetError, match=r"'chk_d2': missing: .*none\.json .*DETECTRON2"):
            check_files("chk_d2")
        write(tmp_path / "none.json", content([(8, 9)]))
        check_files("chk_d2")
    finally:
        unregister("chk_d2")


def test_class_groups_are_checked_before_training(config_of: ConfigOf) -> None:
    cfg = config_of("chk_g", "chk_g", chk_g=ABC)
    check_datasets(cfg, training=True)
    MetadataCatalog.get("chk_g").class_groups = {"novel": ["a", "z"]}
    with pytest.raises(DatasetError, match="'novel' of dataset 'chk_g': unknown class 'z'"):
        check_datasets(cfg, training=True)


def test_a_test_set_is_checked_without_its_training_set(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    cfg = config_of("chk_t", "chk_u", chk_t=ABC, chk_u=ABC)
    check_datasets(cfg, training=True)
    (tmp_path / "chk_t.json").unlink()
    check_test_dataset(cfg, "chk_u")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    with pytest.raises(DatasetError, match="3 classes"):
        check_test_dataset(cfg, "chk_u")


def test_one_renamed_class_is_the_same_order() -> None:
    names = ["cow", "Bull_Calf", "dog-house", "cat"]
    check_same_order("a", names, "b", ["cow", "horned cow", "dog house", "cat", "more"])
    with pytest.raises(DatasetError, match="class 1 is 'Bull_Calf' here and 'bear' in 'b'"):
        check_same_order("a", names, "b", ["cow", "bear", "ant", "emu"])
    assert folded(" Dog_House-keeper ") == "dog house keeper"


def test_an_unknown_evaluator_is_noticed_before_training(config_of: ConfigOf) -> None:
    cfg = config_of("chk_e", "chk_e", chk_e=ABC)
    check_datasets(cfg, training=True)
    metadata = MetadataCatalog.get("chk_e")
    metadata.__dict__["evaluator_type"] = "lviss"
    with pytest.raises(DatasetError, match=r"'chk_e': evaluator_type 'lviss' has no .*mean lvis\?"):
        check_datasets(cfg, training=True)
    metadata.__dict__["evaluator_type"] = ""
    with pytest.raises(DatasetError, match=r"no evaluator_type is set.*known types: .*coco.*lvis"):
        check_datasets(cfg, training=True)
    cfg.DATASETS.TEST = ()
    check_datasets(cfg, training=True)


def test_a_detector_may_test_other_classes_than_it_trains(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    register_all()  # the keys of MODEL.CLIP
    cfg = config_of("chk_o", "chk_p", chk_o=ABC, chk_p=ABCD)
    with pytest.raises(DatasetError, match="'chk_p': 4 classes"):
        check_datasets(cfg, training=True)
    cfg.MODEL.META_ARCHITECTURE = "CLIPFastRCNN"
    torch.save(torch.ones(4, 8), tmp_path / "tested.pth")
    cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH = str(tmp_path / "tested.pth")
    check_datasets(cfg, training=True)
    torch.save(torch.ones(5, 8), tmp_path / "tested.pth")
    with pytest.raises(DatasetError, match=r"4 classes, but .*OPENSET_TEST_TEXT_EMB_PATH stands"):
        check_datasets(cfg, training=True)
