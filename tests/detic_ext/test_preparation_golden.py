"""The preparations against what the authors' tools made of the same input (exact)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detic_ext.data.preparation.caption_tags import tag_images
from detic_ext.data.preparation.category_counts import count_categories, with_frequency
from detic_ext.data.preparation.coco_captions import gather_captions, with_synonyms
from detic_ext.data.preparation.lvis_base import without_rare
from detic_ext.data.preparation.lvis_coco import merge_coco
from detic_ext.data.preparation.merged_vocabulary import merge_vocabularies
from detic_ext.data.preparation.ov_coco import original_order
from tests.golden_cases import golden_root

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    return json.loads((golden_root() / "detic" / "data_tools.json").read_text())


def like(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that the golden one has."""
    return {key: found[key] for key in expected}


def all_like(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [like(one, other) for one, other in zip(found, expected, strict=True)]


def test_golden_lvis_base(case: dict[str, Any]) -> None:
    assert without_rare(case["lvis_in"], where="") == case["norare_out"]


def test_golden_cat_info(case: dict[str, Any]) -> None:
    assert count_categories(case["lvis_in"], where="") == case["cat_info_out"]


def test_golden_cat_info_with_frequencies(case: dict[str, Any]) -> None:
    counted = count_categories(case["norare_out"], where="")

    found = with_frequency(counted, rare_below=2, common_below=3)

    assert found == case["norare_cat_info_addfreq_r2_c3_out"]


def test_golden_lvis_coco(case: dict[str, Any]) -> None:
    merged = merge_coco(case["lvis_in"], case["merge_coco_in"], where="", coco_where="")

    assert merged == case["merge_out"]


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("cc_tags_first_out", {}),
        ("cc_tags_allcaps_out", {"all_captions": True}),
        ("cc_tags_keep_out", {"keep_untagged": True}),
    ],
)
def test_golden_caption_tags(case: dict[str, Any], key: str, options: dict[str, bool]) -> None:
    content = case["cc_in"]

    tagged = list(tag_images(content["images"], content["categories"], **options))

    assert all_like(tagged, case[key]) == case[key]


def test_golden_coco_captions(case: dict[str, Any]) -> None:
    images = gather_captions(case["coco_captions_in"], where="")
    categories = with_synonyms(case["coco_captions_cats"])

    tagged = list(tag_images(images, categories, all_captions=True))

    expected = case["coco_captions_out"]
    assert all_like(tagged, expected) == expected


def test_golden_original_order(case: dict[str, Any]) -> None:
    part = {"images": [], "annotations": [], "categories": case["coco_captions_cats"][1:3]}

    found = original_order(part, case["coco_captions_cats"], where="")

    assert found["categories"] == case["oriorder_categories_out"]


def test_golden_merged_vocabulary(case: dict[str, Any]) -> None:
    source, expected = case["in21k_in"], case["in21k_out"]

    merged = merge_vocabularies(
        case["lvis_in"]["categories"], source["categories"], where="", second_where=""
    )
    images = list(merged.relabelled(source["images"], where=""))

    assert all_like(list(merged.categories), expected["categories"]) == expected["categories"]
    assert all_like(images, expected["images"]) == expected["images"]
