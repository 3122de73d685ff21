"""Class frequencies from files and metadata, and the weights that follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detic_ext.losses.class_frequency import (
    frequency_weight,
    image_counts,
    read_image_counts,
    seen_class_weight,
)
from ext_common.errors import DatasetError

RECORDS = [
    {"id": 7, "image_count": 4, "frequency": "c", "name": "b"},
    {"id": 2, "image_count": 100, "frequency": "f", "name": "a"},
    {"id": 9, "image_count": 0, "frequency": "r", "name": "c"},
]


def test_file_is_read_in_order_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "cat_info.json"
    path.write_text(json.dumps(RECORDS))
    assert read_image_counts(path) == [100, 4, 0]
    assert image_counts(RECORDS) == [100, 4, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not a JSON file"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ('"abc"', "expected a list"),
        ("[3]", "no numeric id and image_count.*0 where there are no images"),
        ('[{"id": 1}]', "no numeric id and image_count"),
        ('[{"id": "x", "image_count": 1}]', "no numeric id and image_count"),
        ('[{"id": 1, "image_count": null}]', "no numeric id and image_count"),
        ('[{"id": 1, "image_count": -2}]', "class id 1 has image_count -2"),
        ('[{"id": 1, "image_count": NaN}]', "class id 1 has image_count nan"),
        ('[{"id": 1, "image_count": 2}, {"id": 1, "image_count": 2}]', "class id 1 appears twice"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "cat_info.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_image_counts(path)
    assert str(path) in str(caught.value)


def test_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent.json.*CAT_FREQ_PATH"):
        read_image_counts(tmp_path / "absent.json")


def test_weights_are_powers_and_longer_vocabularies_get_zeros() -> None:
    weights = frequency_weight([100, 4, 0], num_classes=5)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [10, 2, 0, 0, 0]
    assert frequency_weight([100, 4, 0], power=1).tolist() == [100, 4, 0]
    assert seen_class_weight(weights).tolist() == [1, 1, 0, 0, 0]


def test_more_frequencies_than_classes_are_refused() -> None:
    with pytest.raises(DatasetError, match="3 class frequencies for 2 classes"):
        frequency_weight([1, 2, 3], num_classes=2)
