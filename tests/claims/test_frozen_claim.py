"""The experiment of benchmarks/claims/frozen.py with two steps for each run, and its parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import frozen
from benchmarks.claims.frozen_report import gains
from benchmarks.claims.frozen_runs import (
    ALL,
    CASCADE,
    FINETUNED,
    FPN,
    FROZEN,
    METHODS,
    DetectorRun,
    runs_of_a_seed,
)
from benchmarks.claims.object_pictures import CLASS_NAMES, ObjectPictures, render
from ext_common.errors import DatasetError
from ext_common.weights_io import load_tensors
from tools.demo_data.classes import CLASSES


def test_quick_run_makes_tables_and_plots_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "run"), "--quick"]
    assert frozen.main(words) == 0, capsys.readouterr().err
    table = (tmp_path / "run" / "table.md").read_text()
    titles = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert [title for title in titles if title][:4] == [method.title for method in METHODS]
    assert len([title for title in titles if title.startswith("frozen - fine-tuned")]) == 4
    assert "Classification of 36 classes" in table
    for name in ("methods.png", "fraction.png"):
        assert (tmp_path / "run" / name).stat().st_size > 5000
    trunk = load_tensors(tmp_path / "run" / "trunk-seed0.safetensors")
    for run in runs_of_a_seed(25):
        weights = load_tensors(tmp_path / "run" / f"{run.name}-seed0" / "model_final.pth")["model"]
        stem = weights["backbone.bottom_up.stem.conv1.weight"]
        assert bool((stem == trunk["stem.conv1.weight"]).all()) == (run.method not in METHODS[:2])
    share = json.loads((tmp_path / "run/data/oracle_train_25pct_seed0.json").read_text())
    assert len(share["images"]) == 2
    capsys.readouterr()

    assert frozen.main(words) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") == 16
    assert "$ python" not in again

    assert frozen.main([*words, "--scenes", "9"]) == 1
    assert "other settings: sizes" in capsys.readouterr().err


def test_wrong_counts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        frozen.main(["--output", str(tmp_path / "run"), "--seeds", "0"])
    assert "--seeds is 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_classes_of_the_detection_set_are_among_those_of_the_pictures() -> None:
    assert len(set(CLASS_NAMES)) == 36
    assert {kind.name for kind in CLASSES} <= set(CLASS_NAMES)


def test_pictures_depend_on_their_place_alone_and_survive_the_disk(tmp_path: Path) -> None:
    few, more = render(1, 1), render(2, 1)
    assert few.train_NHW3.shape == (36, 64, 64, 3)
    assert (few.train_NHW3 == more.train_NHW3[::2]).all()
    assert (few.test_NHW3 == more.train_NHW3[1::2]).all()
    assert more.train_N.tolist() == sorted([*range(36)] * 2)
    more.write(tmp_path / "set.npz")
    found = ObjectPictures.read(tmp_path / "set.npz")
    assert (found.test_NHW3 == more.test_NHW3).all()
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    with pytest.raises(DatasetError, match="no classification set"):
        ObjectPictures.read(tmp_path / "other.npz")


def test_surfaces_of_one_shape_differ_in_hue() -> None:
    pictures = render(3, 1)
    # the middle of a square is always inside it
    names = ("red square", "yellow square", "green square", "blue square")
    means = {
        name: pictures.train_NHW3[pictures.train_N == CLASS_NAMES.index(name), 28:36, 28:36].mean(
            (0, 1, 2)
        )
        for name in names
    }
    red, yellow, green, blue = means.values()
    assert red.argmax() == 0
    assert green.argmax() == 1
    assert blue.argmax() == 2
    assert yellow.argmin() == 2


def test_gain_is_taken_seed_by_seed() -> None:
    results = {
        DetectorRun(FPN, FINETUNED): [{"AP": 5.0}, {"AP": 6.0}],
        DetectorRun(FPN, FROZEN): [{"AP": 4.0}, {"AP": 7.5}],
        DetectorRun(CASCADE, FROZEN, 25): [{"AP": 4.0}],
        DetectorRun(CASCADE, FINETUNED, ALL): [{"AP": 4.0}],
    }
    assert gains(results) == {"frozen - fine-tuned, FPN": [{"AP": -1.0}, {"AP": 1.5}]}
