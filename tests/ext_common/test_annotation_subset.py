"""Random shares of annotation files, and the command that writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from ext_common.data.annotation_subset import share_of_images
from ext_common.data.dataset_registry import register_from_yaml, unregister
from ext_common.errors import ConfigError, DatasetError
from tools.prepare_data import main


def content(images: int = 200) -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 3 * i + 1, "file_name": f"{i}.jpg", "height": 40, "width": 50}
            for i in range(images)
        ],
        "annotations": [
            {
                "id": 2 * i + k + 1,
                "image_id": 3 * i + 1,
                "category_id": 1,
                "bbox": [1, 2, 10, 10],
                "area": 100,
                "iscrowd": 0,
            }
            for i in range(images)
            for k in range(2)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def ids(share: dict[str, Any]) -> list[int]:
    return [image["id"] for image in share["images"]]


@pytest.mark.parametrize(("percent", "count"), [(5, 10), (10, 20), (0.01, 1), (100, 200)])
def test_share_has_the_right_size_and_only_its_annotations(percent: float, count: int) -> None:
    share = share_of_images(content(), percent)
    assert len(ids(share)) == count
    assert len(share["annotations"]) == 2 * count
    assert {box["image_id"] for box in share["annotations"]} == set(ids(share))
    assert ids(share) == sorted(ids(share))
    assert share["categories"] == content()["categories"]
    assert share["info"] == {"year": 2017}


def test_shares_repeat_differ_by_seed_and_contain_smaller_ones() -> None:
    whole = content()
    assert share_of_images(whole, 10, seed=3) == share_of_images(whole, 10, seed=3)
    assert ids(share_of_images(whole, 10, seed=3)) != ids(share_of_images(whole, 10, seed=4))
    assert set(ids(share_of_images(whole, 5))) < set(ids(share_of_images(whole, 10)))


def test_order_of_the_file_does_not_matter() -> None:
    shuffled = content()
    random.Random(0).shuffle(shuffled["images"])
    assert set(ids(share_of_images(shuffled, 10))) == set(ids(share_of_images(content(), 10)))


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_other_percentages_are_refused(percent: float) -> None:
    with pytest.raises(ConfigError, match="percent"):
        share_of_images(content(), percent)


def test_a_file_without_images_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"a\.json"):
        share_of_images({"images": []}, 5, where="a.json")


def test_command_writes_datasets_that_can_be_registered(tmp_path: Path) -> None:
    source = tmp_path / "annotations" / "train.json"
    source.parent.mkdir()
    (tmp_path / "photos").mkdir()
    source.write_text(json.dumps(content()))
    words = ["coco-subset", "--ann", str(source), "--images", str(tmp_path / "photos")]
    assert main([*words, "--percent", "5", "2.5", "--seed", "7"]) == 0
    (name,) = register_from_yaml(source.parent / "train_2.5pct_seed7.yaml")
    try:
        records = DatasetCatalog.get(name)
    finally:
        unregister(name)
    assert name == "train_2.5pct_seed7"
    assert len(records) == 5
    assert Path(records[0]["file_name"]).parent.resolve() == (tmp_path / "photos").resolve()
    assert (source.parent / "train_5pct_seed7.json").is_file()
