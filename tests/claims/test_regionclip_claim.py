"""The experiment of benchmarks/claims/regionclip.py with two steps for each run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.claims import regionclip
from benchmarks.claims.captions import contents, noun, write_base_classes, write_captions
from benchmarks.claims.region_accuracy import top1
from benchmarks.claims.tiny_clip import rate_factor
from ext_common.errors import DatasetError
from regionclip_ext.concepts.concept_list import names_of, read_concepts

LVIS = {
    "images": [
        {"id": 7, "file_name": "val/a.jpg", "neg_category_ids": [3]},
        {"id": 8, "file_name": "val/b.jpg", "neg_category_ids": [1, 2]},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 12]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [20, 3, 10, 12]},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [40, 3, 10, 12]},
        {"id": 4, "image_id": 8, "category_id": 3, "bbox": [2, 3, 10, 12]},
    ],
    "categories": [
        {"id": 1, "name": "red disc"},
        {"id": 2, "name": "striped ring"},
        {"id": 3, "name": "red cross"},
    ],
}


@pytest.fixture
def lvis(tmp_path: Path) -> Path:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(LVIS))
    return path


def test_quick_run_makes_table_and_plot_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--output", str(run), "--quick"]
    # two steps of the warm-up would be lost in rounding
    words += ["--pretrain-opts", "SOLVER.WARMUP_ITERS", "0"]
    assert regionclip.main(words) == 0, capsys.readouterr().err
    lines = (run / "table.md").read_text().splitlines()
    assert lines[0] == f"| | {' | '.join(regionclip.COLUMNS)} | seeds |"
    titles = [line.split("|")[1].strip() for line in lines[2:6]]
    assert titles == [title for title, _ in regionclip.METHODS.values()]
    assert all(line.endswith("| 1 |") for line in lines[2:6])
    assert "of single-object pictures (chance 8.3 %)" in lines[-1]
    assert (run / "plot.png").stat().st_size > 5000

    classes = {noun(kind.name) for kind in regionclip.CLASSES}
    assert set(names_of(read_concepts(run / "data" / "concepts.txt"))) <= classes
    clip = torch.load(run / "clip-seed0" / "clip.pt", weights_only=True)
    pretrained = torch.load(run / "pretrain-rpn-seed0" / "model_final.pth", weights_only=True)
    name = "layer1.0.conv1.weight"  # frozen, so still CLIP's: the file was taken
    assert torch.equal(clip[f"visual.{name}"], pretrained["model"][f"backbone.{name}"])
    name = "layer3.0.conv1.weight"
    assert not torch.equal(clip[f"visual.{name}"], pretrained["model"][f"backbone.{name}"])
    assert "[20/20]" in capsys.readouterr().out

    assert regionclip.main(words) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") == 20
    assert "$ python" not in again

    assert regionclip.main([*words, "--base", "7"]) == 1
    assert "other settings: sizes" in capsys.readouterr().err


def test_captions_name_every_class_of_a_picture_once(lvis: Path, tmp_path: Path) -> None:
    assert contents(lvis) == [
        ("val/a.jpg", ["reddisc", "stripedhoop", "reddisc"]),
        ("val/b.jpg", ["redcross"]),
    ]
    labels = tmp_path / "labels.json"
    image = {"id": 1, "file_name": "red disc/1.jpg", "pos_category_ids": [1]}
    empty = {"id": 2, "file_name": "none.jpg"}
    labels.write_text(json.dumps({**LVIS, "images": [image, empty], "annotations": []}))
    output = tmp_path / "captions.json"
    assert write_captions({lvis: "images", labels: "labels"}, output) == 3
    written = json.loads(output.read_text())
    names = ["images/val/a.jpg", "images/val/b.jpg", "labels/red disc/1.jpg"]
    assert [image["file_name"] for image in written["images"]] == names
    texts = [one["caption"] for one in written["annotations"]]
    assert len(texts) == 6
    for text in texts[:2]:
        assert text.count("a reddisc") == 1
        assert text.count("a stripedhoop") == 1
    assert all(text.endswith("of a redcross.") for text in texts[2:4])


def test_base_classes_leave_pictures_and_drop_boxes(lvis: Path, tmp_path: Path) -> None:
    output = tmp_path / "base.json"
    write_base_classes(lvis, output, ["red disc", "striped ring"])
    kept = json.loads(output.read_text())
    assert [entry["id"] for entry in kept["categories"]] == [1, 2]
    assert [one["id"] for one in kept["annotations"]] == [1, 2, 3]
    assert [image["neg_category_ids"] for image in kept["images"]] == [[], [1, 2]]


def test_top1_takes_the_best_class_of_every_box(lvis: Path, tmp_path: Path) -> None:
    scored = [
        (7, [2, 3, 10, 12], {1: 0.4, 2: 0.5, 3: 0.1}),  # wrong
        (7, [20.004, 2.997, 10, 12], {1: 0.1, 2: 0.3, 3: 0.2}),  # right
        (7, [40, 3, 10, 12], {1: 0.9, 2: 0.0, 3: 0.1}),  # right
        (8, [2, 3, 10, 12], {1: 0.6, 2: 0.1, 3: 0.3}),  # wrong, and not the box of image 7
    ]
    results = [
        {"image_id": image, "bbox": box, "category_id": key, "score": score}
        for image, box, scores in scored
        for key, score in scores.items()
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    groups = {"base": ("red disc", "striped ring"), "novel": ("red cross",)}
    assert top1(path, lvis, groups) == {
        "all": pytest.approx(50),
        "base": pytest.approx(200 / 3),
        "novel": 0,
    }
    path.write_text(json.dumps(results[:-3]))
    with pytest.raises(DatasetError, match="no scores for the box of annotation 4"):
        top1(path, lvis, groups)


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate_factor(step, 200) for step in range(201)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(rates[49], abs=0.01)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[200] == pytest.approx(0)


def test_wrong_counts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        regionclip.main(["--output", str(tmp_path / "run"), "--seeds", "0"])
    assert "--seeds is 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
