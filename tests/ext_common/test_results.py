"""Detections and their COCO and CSV forms, read back by pycocotools and by ourselves."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from ext_common.errors import DatasetError, VocabularyError
from ext_common.results import (
    Detections,
    decode_mask,
    encode_mask,
    from_coco_json,
    read_coco,
    to_coco_json,
    write_coco,
    write_csv,
)

NAMES = ("red square", 'the "big", disc', "größe\n東京")


def some(count: int, *, masks: bool = False, file_name: str = "a.jpg", seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (count, 4)).astype(np.float32)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    rles = [encode_mask(rng.random((50, 80)) > 0.5) for _ in range(count)]
    return Detections(
        file_name,
        (50, 80),
        boxes,
        rng.random(count).astype(np.float32),
        rng.integers(0, len(NAMES), count),
        NAMES,
        tuple(rles) if masks else None,
    )


def assert_same(left: Detections, right: Detections) -> None:
    assert (left.file_name, left.image_size) == (right.file_name, right.image_size)
    assert left.class_names == right.class_names
    np.testing.assert_array_equal(left.boxes_R4, right.boxes_R4)
    np.testing.assert_array_equal(left.scores_R, right.scores_R)
    np.testing.assert_array_equal(left.class_ids_R, right.class_ids_R)
    assert (left.masks or None) == (right.masks or None)


def test_from_instances() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 3:7, 5:15] = True
    instances = Instances(
        (20, 30),
        pred_boxes=Boxes(torch.tensor([[5.0, 3, 15, 7], [0, 0, 30, 20]])),
        scores=torch.tensor([0.75, 0.5], requires_grad=True),
        pred_classes=torch.tensor([2, 0]),
        pred_masks=masks,
    )
    found = Detections.from_instances(instances, NAMES, "b.png")
    assert (len(found), found.image_size, found.file_name) == (2, (20, 30), "b.png")
    assert found.names == (NAMES[2], NAMES[0])
    assert found.boxes_R4.tolist() == [[5, 3, 15, 7], [0, 0, 30, 20]]
    assert found.masks is not None
    for rle, mask in zip(found.masks, masks, strict=True):
        np.testing.assert_array_equal(decode_mask(rle), mask.numpy())
    with pytest.raises(VocabularyError, match=r"b\.png: class ids 0\.\.2 but 2 class names"):
        Detections.from_instances(instances, NAMES[:2], "b.png")


def test_arrays_are_private_and_read_only() -> None:
    boxes = np.zeros((1, 4), dtype=np.float32)
    found = Detections("a", (5, 5), boxes, np.ones(1), np.zeros(1), ["x"])
    boxes += 1
    assert found.boxes_R4.max() == 0
    assert (found.boxes_R4.dtype, found.scores_R.dtype, found.class_ids_R.dtype) == (
        np.dtype("float32"),
        np.dtype("float32"),
        np.dtype("int64"),
    )
    with pytest.raises(ValueError, match="read-only"):
        found.boxes_R4[0] = 1
    with pytest.raises(AttributeError):
        found.file_name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("boxes", "scores", "ids", "message"),
    [
        (np.zeros((2, 4)), np.zeros(1), np.zeros(1), "shapes"),
        (np.zeros(4), np.zeros(1), np.zeros(1), "shapes"),
        (np.zeros((1, 4)), np.full(1, np.nan), np.zeros(1), "not finite"),
        (np.full((1, 4), np.inf), np.zeros(1), np.zeros(1), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    boxes: np.ndarray, scores: np.ndarray, ids: np.ndarray, message: str
) -> None:
    with pytest.raises(DatasetError, match=rf"p\.jpg: .*{message}"):
        Detections("p.jpg", (5, 5), boxes, scores, ids, ["x"])


def test_filter_keeps_masks_and_order() -> None:
    found = some(20, masks=True)
    kept = found.filter(0.5)
    rows = [i for i in range(20) if found.scores_R[i] >= 0.5]
    assert 0 < len(rows) < 20
    np.testing.assert_array_equal(kept.boxes_R4, found.boxes_R4[rows])
    assert kept.masks is not None
    assert found.masks is not None
    assert list(kept.masks) == [found.masks[i] for i in rows]
    assert len(found.filter(float(found.scores_R.max()))) == 1
    assert len(found.filter(1.1)) == 0


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 4), max_size=4), masks=st.booleans())
def test_coco_round_trip(counts: list[int], masks: bool) -> None:
    results = [
        some(count, masks=masks, file_name=f"höhe {i}\n.jpg", seed=i)
        for i, count in enumerate(counts)
    ]
    text = json.dumps(to_coco_json(results, NAMES))
    back = from_coco_json(json.loads(text))
    assert len(back) == len(results)
    for left, right in zip(results, back, strict=True):
        assert_same(left, right)


def test_coco_file_is_one_for_pycocotools(tmp_path: Path) -> None:
    results = [some(3, masks=True), some(0, file_name="empty.jpg")]
    write_coco(tmp_path / "results.json", results)
    coco = COCO(str(tmp_path / "results.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    assert coco.getImgIds() == [1, 2]
    assert coco.imgs[2] == {"id": 2, "file_name": "empty.jpg", "height": 50, "width": 80}
    for index, annotation in enumerate(coco.loadAnns(coco.getAnnIds(imgIds=1))):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], results[0].boxes_R4[index])
        assert annotation["category_id"] == results[0].class_ids_R[index] + 1
        assert results[0].masks is not None
        np.testing.assert_array_equal(
            coco.annToMask(annotation), decode_mask(results[0].masks[index])
        )
        assert annotation["area"] == decode_mask(results[0].masks[index]).sum()


def test_nothing_found_is_valid(tmp_path: Path) -> None:
    write_coco(tmp_path / "none.json", [], NAMES)
    content = json.loads((tmp_path / "none.json").read_text())
    assert content["images"] == content["annotations"] == []
    assert [c["name"] for c in content["categories"]] == list(NAMES)
    assert read_coco(tmp_path / "none.json") == []
    write_csv(tmp_path / "none.csv", [some(0)])
    assert len((tmp_path / "none.csv").read_text().splitlines()) == 1


def test_csv_rows(tmp_path: Path) -> None:
    results = [some(4), some(2, file_name="b, c.jpg", seed=1)]
    write_csv(tmp_path / "r.csv", results)
    with open(tmp_path / "r.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    flat = [(result, i) for result in results for i in range(len(result))]
    assert len(rows) == 6
    for row, (result, i) in zip(rows, flat, strict=True):
        assert row["file_name"] == result.file_name
        assert row["class_name"] == result.names[i]
        assert int(row["class_id"]) == result.class_ids_R[i]
        assert (int(row["height"]), int(row["width"])) == (50, 80)
        assert abs(float(row["score"]) - result.scores_R[i]) < 1e-6
        box = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        np.testing.assert_allclose(box, result.boxes_R4[i], atol=1e-3)


def test_undecodable_file_name_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    results = [some(1, file_name=name)]
    write_coco(tmp_path / "r.json", results)
    assert read_coco(tmp_path / "r.json")[0].file_name == name
    write_csv(tmp_path / "r.csv", results)
    assert b"\xff.jpg" in (tmp_path / "r.csv").read_bytes()


def test_two_vocabularies_are_refused() -> None:
    other = Detections("b.jpg", (5, 5), np.zeros((0, 4)), [], [], ["x"])
    with pytest.raises(VocabularyError, match=r"b\.jpg: its 1 class names.*one COCO file per"):
        to_coco_json([some(1), other])


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match=r"a\.json: not JSON"):
        read_coco(tmp_path / "a.json")
    with pytest.raises(DatasetError, match=r"gone\.json: cannot be read: No such file"):
        read_coco(tmp_path / "gone.json")
    content = to_coco_json([some(1)])
    content["annotations"][0]["category_id"] = 77
    with pytest.raises(DatasetError, match="77"):
        from_coco_json(content)
    with pytest.raises(DatasetError, match="categories"):
        from_coco_json({"images": []})


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_coco(path, [some(1)])
    before = path.read_bytes()
    other = Detections("b.jpg", (5, 5), np.zeros((0, 4)), [], [], ["x"])
    with pytest.raises(VocabularyError):
        write_coco(path, [some(1), other])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.json"]
