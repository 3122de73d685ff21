"""Objects named by their neighbours: the vote, and which boxes of a file are asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.claims.object_naming import objects, percent_named


def _circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_nearest_vote_and_nearer_ones_count_more() -> None:
    known, classes = _circle(0, 10, 90, 100, 180), torch.tensor([0, 0, 1, 1, 2])
    asked, true = _circle(2, 96, 179), torch.tensor([0, 1, 2])
    assert percent_named(known, classes, asked, true, count=1) == pytest.approx(100)
    # of the two nearest of 140 degrees (100 and 180) both are 40 away; of 150, class 2 is nearer
    assert percent_named(known, classes, _circle(150), torch.tensor([2]), count=2) == 100
    assert percent_named(known, classes, _circle(150), torch.tensor([1]), count=2) == 0
    # three votes of 150 degrees: two of class 1 outweigh the nearer one of class 2
    assert percent_named(known, classes, _circle(150), torch.tensor([1]), count=3) == 100
    assert percent_named(known, classes, asked, true, count=99) == pytest.approx(100 * 2 / 3)


def test_a_loop_over_boxes_gives_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.nn.functional.normalize(torch.randn(30, 6, generator=generator), dim=1)
    asked = torch.nn.functional.normalize(torch.randn(50, 6, generator=generator), dim=1)
    classes, true = torch.arange(30) % 4, torch.arange(50) % 4
    right = 0
    for vector, own in zip(asked, true.tolist(), strict=True):
        similar = [float(vector @ other) for other in known]
        nearest = sorted(range(30), key=lambda place, s=similar: -s[place])[:5]
        votes = [0.0] * 4
        for place in nearest:
            votes[int(classes[place])] += 1 + similar[place]
        right += votes.index(max(votes)) == own
    assert percent_named(known, classes, asked, true) == pytest.approx(100 * right / 50)


def test_boxes_stand_in_the_order_of_their_pictures_with_the_last_pixel_inside(
    tmp_path: Path,
) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"{name}.png")
    boxes = [(2, 1, [1, 2, 3, 4]), (1, 3, [5, 6, 10, 9]), (2, 2, [0, 0, 30, 20])]
    file = {
        "images": [{"id": i, "file_name": f"{n}.png"} for i, n in ((1, "a"), (3, "c"), (2, "b"))],
        "annotations": [{"image_id": i, "category_id": c, "bbox": b} for i, c, b in boxes],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(file))
    pictures, classes = objects(tmp_path / "boxes.json", tmp_path)
    assert [boxes_K4.tolist() for _, boxes_K4 in pictures] == [
        [[5, 6, 14, 14]],
        [[1, 2, 3, 5], [0, 0, 29, 19]],
    ]
    assert classes.tolist() == [2, 0, 1]
