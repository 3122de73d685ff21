"""tools/demo.py: which classes are looked for, how many per region, and where the time goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog

import detic_ext  # noqa: F401 - registers the published dataset names
from ext_common.errors import VocabularyError
from ext_common.vocabulary import Vocabulary
from tests.ext_common.tiny_detectors import color_config, save_random_weights
from tests.tools.test_demo import write_config
from tools.demo_parts.command_line import build_parser
from tools.demo_parts.model import build_predictor
from tools.demo_parts.timings import STAGES, StageTimes
from tools.demo_parts.vocabulary import choose_vocabulary


def parse(*words: str) -> Vocabulary | None:
    required = ("--config-file", "x", "--input", "y", "--output", "z")
    return choose_vocabulary(build_parser("").parse_args([*required, *words]))


@pytest.mark.parametrize(("name", "count"), [("lvis", 1203), ("coco", 80)])
def test_built_in_names(name: str, count: int) -> None:
    found = parse("--vocabulary", name)
    assert found is not None
    assert len(found) == count
    assert found.embeddings_CD is None
    assert found.index("banana") >= 0


def test_published_spelling_of_custom_names() -> None:
    found = parse("--vocabulary", "custom", "--custom_vocabulary", "headphone, webcam,paper")
    assert found is not None
    assert found.names == ("headphone", "webcam", "paper")
    assert parse("--custom-vocabulary", "cup") == Vocabulary.from_names(["cup"])
    assert parse() is None


@pytest.mark.parametrize(
    "words",
    [
        ("--vocabulary", "custom"),
        ("--vocabulary", "lvis", "--custom-vocabulary", "cup"),
    ],
)
def test_contradictions(words: tuple[str, ...]) -> None:
    with pytest.raises(VocabularyError, match="--vocabulary custom --custom_vocabulary"):
        parse(*words)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("objects365", "objects365_v2_val"), ("openimages", "oid_val_expanded")],
)
def test_names_that_are_not_here(name: str, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VocabularyError, match=f"classes of {name} are read from .*json"):
        parse("--vocabulary", name)
    # with the annotation file they are its classes
    metadata = SimpleNamespace(thing_classes=["cup", "jug"])
    monkeypatch.setattr(MetadataCatalog, "get", lambda wanted: {dataset: metadata}[wanted])
    assert parse("--vocabulary", name) == Vocabulary.from_names(["cup", "jug"])


@pytest.mark.parametrize(
    ("words", "one_class"),
    [
        ((), True),
        (("--pred_all_class",), False),
        (("--pred-all-class", "--cpu"), False),
        (("--opts", "MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL", "False"), False),
    ],
)
def test_classes_of_a_region(tmp_path: Path, words: tuple[str, ...], one_class: bool) -> None:
    cfg = color_config()
    save_random_weights(cfg, tmp_path)
    config = write_config(cfg, tmp_path)
    required = ("--config-file", str(config), "--input", "y", "--confidence-threshold", "0.3")
    predictor = build_predictor(build_parser("").parse_args([*required, *words]))
    assert predictor.cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL is one_class
    assert predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.3
    assert predictor.cfg.MODEL.DEVICE == "cpu"


def test_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("tools.demo_parts.timings.time.perf_counter", lambda: next(clock))
    times = StageTimes()
    assert list(times.iterate("read", [10, 20])) == [10, 20]  # the end takes time, too
    with times.measure("model"):
        pass
    assert times.seconds == dict(zip(STAGES, (3, 1, 0, 0), strict=True))
    lines = times.table(2).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["read", "1500.0", "75%"],
        ["model", "500.0", "25%"],
    ]
    assert lines[-2].split() == ["all", "2000.0", "100%"]
    assert lines[-1] == "0.50 pictures/s"
    assert "0.0" in StageTimes().table(0)
