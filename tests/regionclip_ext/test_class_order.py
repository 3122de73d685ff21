"""Rows of embedding files and the names that belong to them: detectors, and pools of concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ext_common.data.dataset_checks import check_datasets, check_test_dataset
from ext_common.data.dataset_registry import unregister
from ext_common.errors import ConfigError, DatasetError
from ext_common.text_encoder import HashTextEncoder
from regionclip_ext.concepts.embedding_files import write_embeddings
from regionclip_ext.modeling.class_embeddings import ClassEmbeddings, ConfiguredClasses
from regionclip_ext.modeling.pretrain.concept_pools import ConceptPools
from tests.dist.tiny_training import write_dataset
from tests.regionclip_ext.tiny_detector import DIM, tiny_config

TRAIN, TEST = "class_order_train", "class_order_val"
KINDS = ("npz", "pth")


@pytest.fixture
def config_of(tmp_path: Path) -> Iterator[Callable[..., CfgNode]]:
    """Configurations of a detector for a dataset with the classes disc and square."""
    registry = write_dataset(tmp_path / "data", TRAIN, TEST)

    def make(**keys: object) -> CfgNode:
        sets = {"DATASETS__TRAIN": (TRAIN,), "DATASETS__TEST": (TEST,)}
        return tiny_config(
            tmp_path,
            "ovd_coco_RN50.yaml",
            DATASETS__REGISTRY=(str(registry),),
            MODEL__ROI_HEADS__NUM_CLASSES=2,
            **{**sets, **keys},
        )

    yield make
    for name in (TRAIN, TEST):
        if name in DatasetCatalog:
            unregister(name)


def _write(path: Path, *names: str) -> str:
    encoder = HashTextEncoder(DIM)
    write_embeddings(path, names, encoder.encode(names), encoder.encoder_id)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_another_order_than_the_dataset_is_refused(
    config_of: Callable[..., CfgNode], tmp_path: Path, kind: str
) -> None:
    path = _write(tmp_path / f"mine.{kind}", "square", "disc")
    cfg = config_of(MODEL__CLIP__TEXT_EMB_PATH=path)
    message = f"'{TRAIN}': class 0 is 'disc' here and 'square' in MODEL.CLIP.TEXT_EMB_PATH .*mine"
    with pytest.raises(DatasetError, match=message) as refused:
        check_datasets(cfg, training=True)
    assert "concept-features --ann" in refused.value.fix
    # evaluation alone asks the same
    check_datasets(cfg, training=False)
    with pytest.raises(DatasetError, match=f"'{TEST}': class 0 is 'disc' here and 'square' in"):
        check_test_dataset(cfg, TEST)


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_at_test_are_compared_with_the_test_set(
    config_of: Callable[..., CfgNode], tmp_path: Path, kind: str
) -> None:
    fits = _write(tmp_path / "fits.npz", "Disc", "square")
    swapped = _write(tmp_path / f"swapped.{kind}", "square", "disc")
    keys = {"MODEL__CLIP__TEXT_EMB_PATH": fits}
    check_datasets(config_of(**keys, MODEL__CLIP__OPENSET_TEST_TEXT_EMB_PATH=fits), training=True)
    cfg = config_of(**keys, MODEL__CLIP__OPENSET_TEST_TEXT_EMB_PATH=swapped)
    with pytest.raises(DatasetError, match=rf"'{TEST}': class 0 .* in .*OPENSET_TEST_.*swapped"):
        check_datasets(cfg, training=True)


def test_a_list_of_classes_in_another_order_is_refused(config_of: Callable[..., CfgNode]) -> None:
    check_datasets(config_of(MODEL__VOCABULARY="disc, square"), training=True)
    check_datasets(config_of(MODEL__VOCABULARY=f"dataset:{TRAIN}"), training=True)
    with pytest.raises(DatasetError, match=r"0 is 'disc' here and 'square' in MODEL\.VOCABULARY"):
        check_datasets(config_of(MODEL__VOCABULARY="square, disc"), training=True)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_the_names_of_their_file(
    config_of: Callable[..., CfgNode], tmp_path: Path, kind: str
) -> None:
    path = _write(tmp_path / f"mine.{kind}", "square", "disc")
    cfg = config_of(MODEL__CLIP__TEXT_EMB_PATH=path)
    check_datasets(cfg, training=False)  # registers; a user's own pictures have no classes
    classes = ConfiguredClasses.from_config(cfg).trained
    assert classes is not None
    assert classes.names == ("square", "disc")
    torch.testing.assert_close(
        classes.embeddings_CD, HashTextEncoder(DIM).encode(["square", "disc"])
    )


def test_rows_without_names_have_those_of_the_dataset(
    config_of: Callable[..., CfgNode], tmp_path: Path
) -> None:
    torch.save(torch.ones(2, DIM), tmp_path / "rows.pth")
    cfg = config_of(MODEL__CLIP__TEXT_EMB_PATH=str(tmp_path / "rows.pth"))
    check_datasets(cfg, training=True)
    classes = ConfiguredClasses.from_config(cfg).trained
    assert classes is not None
    assert classes.names == ("disc", "square")


def test_names_as_lvis_and_its_prompts_spell_them_are_the_same(
    config_of: Callable[..., CfgNode], tmp_path: Path
) -> None:
    cfg = config_of(
        MODEL__CLIP__TEXT_EMB_PATH=_write(tmp_path / "l.npz", "aerosol can", "bow weapon")
    )
    check_datasets(cfg, training=False)  # registers
    for name in (TRAIN, TEST):
        MetadataCatalog.get(name).__dict__["thing_classes"] = ["aerosol_can", "bow_(weapon)"]
    check_datasets(cfg, training=True)


@pytest.mark.parametrize("key", ["TEXT_EMB_PATH", "OPENSET_TEST_TEXT_EMB_PATH"])
def test_a_list_of_names_is_no_file_of_embeddings(
    config_of: Callable[..., CfgNode], tmp_path: Path, key: str
) -> None:
    (tmp_path / "names.txt").write_text("disc\nsquare\n")
    cfg = config_of(**{f"MODEL__CLIP__{key}": str(tmp_path / "names.txt")})
    message = rf"MODEL\.CLIP\.{key}: .*names\.txt has names and no embeddings .*concept-features"
    with pytest.raises(ConfigError, match=message):
        ConfiguredClasses.from_config(cfg)


def test_a_second_checkpoint_brings_its_embeddings_after_the_first_was_used() -> None:
    classes = ClassEmbeddings(None, num_classes=2, dim=3)
    for value in (1.0, 2.0):
        classes.load_state_dict({"weight": torch.full((2, 3), value)})
        assert (classes() == value).all()
    configured = ClassEmbeddings(torch.full((2, 3), 5.0), num_classes=2, dim=3)
    configured.load_state_dict({"weight": torch.ones(2, 3)})
    assert (configured() == 5).all()


def _pools(folder: Path, student: str, teacher: str) -> ConceptPools | None:
    keys = {"CUSTOM_ENCODER__EMBED_DIM": DIM, "IMAGE_ENCODER": "custom"}
    return ConceptPools.from_config(
        tiny_config(
            folder,
            "pretrain_coco_RN50.yaml",
            MODEL__CLIP__CONCEPT_POOL_EMB=student,
            MODEL__CLIP__TEACHER_CONCEPT_POOL_EMB=teacher,
            **{f"MODEL__CLIP__TEACHER_{key}": value for key, value in keys.items()},
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pools_in_different_orders_are_refused(tmp_path: Path, kind: str) -> None:
    student = _write(tmp_path / f"s.{kind}", "sky", "cat", "dog")
    teacher = _write(tmp_path / f"t.{kind}", "sky", "dog", "cat")
    message = r"TEACHER_CONCEPT_POOL_EMB: row 1 is 'dog' in .*t\.\w+ and 'cat' in .*s\.\w+ \(make"
    with pytest.raises(ConfigError, match=message):
        _pools(tmp_path, student, teacher)


def test_pools_of_the_same_concepts_are_taken(tmp_path: Path) -> None:
    student = _write(tmp_path / "s.npz", "Sky", "remote_control")
    teacher = _write(tmp_path / "t.pth", "sky", "remote control")
    assert _pools(tmp_path, student, teacher) is not None
    # the list that the rows were made from may be beside them, and say how often
    (tmp_path / "t.txt").write_text("sky,120\nremote control,104\n")
    assert _pools(tmp_path, student, teacher) is not None
    (tmp_path / "t.txt").unlink()
    torch.save(torch.ones(2, DIM), tmp_path / "rows.pth")
    assert _pools(tmp_path, student, str(tmp_path / "rows.pth")) is not None
