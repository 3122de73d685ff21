"""The commands that make concepts and their features, and the class splits they serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from ext_common.vocabulary import Vocabulary
from tools.prepare_data import main


def _run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_splits_have_the_published_numbers_of_classes() -> None:
    assert (len(BASE_IDS), len(NOVEL_IDS)) == (48, 17)
    assert len({*BASE_IDS, *NOVEL_IDS}) == 65
    names = {category["id"]: category["name"] for category in coco_categories()}
    assert sorted(names[key] for key in NOVEL_IDS) == sorted(
        [
            "airplane",
            "bus",
            "cat",
            "dog",
            "cow",
            "elephant",
            "umbrella",
            "tie",
            "snowboard",
            "skateboard",
            "cup",
            "knife",
            "cake",
            "couch",
            "keyboard",
            "sink",
            "scissors",
        ]
    )
    frequencies = [category["frequency"] for category in lvis_categories()]
    assert sum(frequency != "r" for frequency in frequencies) == 866
    assert frequencies.count("r") == 337


def test_concepts_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a dog on a couch\ntwo dogs\na person\n")
    (tmp_path / "b.tsv").write_text(
        "a dog and a cat\thttp://x/1.jpg\na photo of a couch\thttp://x\n"
    )
    (tmp_path / "classes.txt").write_text("Person\n")
    output = tmp_path / "out" / "nouns.txt"
    words: list[str | Path] = ["concepts", "--captions", tmp_path / "a.txt", tmp_path / "b.tsv"]
    words += ["--output", output, "--frequency", "1", "--exclude", tmp_path / "classes.txt"]
    assert _run(*words) == 0
    assert output.read_text() == "dog,3\ncouch,2\ncat,1\n"
    assert "3 concepts of 5 captions" in capsys.readouterr().out
    (tmp_path / "stop.txt").write_text("Dog\n")
    assert _run(*words, "--stop-list", tmp_path / "stop.txt") == 0
    assert "dog" not in output.read_text()
    words[words.index("1")] = "9"
    assert _run(*words) == 1
    assert "is used 9 times (lower --frequency)" in capsys.readouterr().err


def test_features_of_names_concepts_and_categories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", "hash", "--dim", "8", "--cache", tmp_path / "cache"]
    (tmp_path / "nouns.txt").write_text("dog,3\nfire hydrant,1\n")
    pool = tmp_path / "pool.pth"
    words = ["concept-features", "--concepts", tmp_path / "nouns.txt", "--output", pool]
    assert _run(*words, *common) == 0
    emb = torch.load(pool, weights_only=True)
    assert emb.shape == (2, 8)
    assert not torch.allclose(emb.norm(dim=1), torch.ones(2), atol=1e-2)  # a mean, un-normalised
    named = tmp_path / "named.npz"
    names = ["concept-features", "--names", "fire hydrant, dog", "--output", named]
    assert _run(*names, *common) == 0
    vocabulary = Vocabulary.from_file(named)
    assert vocabulary.names == ("fire hydrant", "dog")
    assert vocabulary.embeddings_CD is not None
    assert torch.allclose(vocabulary.embeddings_CD[[1, 0]], emb, atol=1e-6)
    categories = [{"id": 9, "name": "bat_(animal)"}, {"id": 2, "name": "remote_control"}]
    (tmp_path / "ann.json").write_text(json.dumps({"categories": categories}))
    output = tmp_path / "classes.npz"
    words = ["concept-features", "--ann", tmp_path / "ann.json", "--output", output]
    assert _run(*words, "--template", "a {}", *common) == 0
    # rows follow the ids, not the file (pitfall 16)
    assert Vocabulary.from_file(output).names == ("remote control", "bat animal")
    (tmp_path / "nouns.txt").write_text("dog,3\n\ncat,1\n")
    assert _run("concept-features", "--concepts", tmp_path / "nouns.txt", "--output", pool) == 1
    assert "nouns.txt: line 2 is empty" in capsys.readouterr().err
