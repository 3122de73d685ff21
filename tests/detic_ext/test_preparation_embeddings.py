"""Texts of class names, means over synonyms, and names that several classes have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detic_ext.data.preparation.class_embeddings import (
    PROMPTS,
    TextOptions,
    class_texts,
    embed_categories,
    unique_names,
    with_wordnet_synonyms,
)
from detic_ext.data.preparation.synset_table import Synset
from ext_common.errors import DatasetError, VocabularyError
from ext_common.text_encoder import HashTextEncoder

ENCODER = HashTextEncoder(16)


def category(key: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": key, "name": name, **more}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "a bow_(decorative_ribbons)"),
        ({"prompt": "none"}, "bow_(decorative_ribbons)"),
        ({"prompt": "photo"}, "a photo of a bow_(decorative_ribbons)"),
        ({"prompt": "scene"}, "a photo of a bow_(decorative_ribbons) in the scene"),
        ({"fix_space": True}, "a bow (decorative ribbons)"),
        ({"drop_parentheses": True}, "a bow"),
        ({"fix_space": True, "drop_parentheses": True, "prompt": "none"}, "bow"),
    ],
)
def test_texts(options: dict[str, Any], text: str) -> None:
    assert TextOptions(**options).text("bow_(decorative_ribbons)") == text


def test_underscores_for_blanks() -> None:
    assert TextOptions(use_underscore=True).text("hot air  balloon ") == "a hot_air_balloon"
    assert TextOptions().text("trailing blank ") == "a trailing blank "  # as published
    assert TextOptions(drop_parentheses=True).text("a_(b (c)) d (e") == "a a_ d"
    with pytest.raises(VocabularyError, match="contradict"):
        TextOptions(fix_space=True, use_underscore=True)
    with pytest.raises(VocabularyError, match="unknown prompt 'the'"):
        TextOptions(prompt="the")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_rows_are_the_encoded_texts_by_id(prompt: str, tmp_path: Path) -> None:
    categories = [category(9, "dog"), category(2, "hot_dog"), category(5, "cat")]
    options = TextOptions(prompt=prompt)

    found = embed_categories(categories, options, ENCODER, tmp_path, where="a")

    texts = [PROMPTS[prompt].replace("{}", name) for name in ("hot_dog", "cat", "dog")]
    assert found.names == ("hot_dog", "cat", "dog")
    assert found.prompts == tuple(texts)
    assert found.encoder_id == ENCODER.encoder_id
    assert found.embeddings_CD is not None
    torch.testing.assert_close(found.embeddings_CD, ENCODER.encode(texts))
    assert len(list(tmp_path.iterdir())) == 1  # cached
    assert embed_categories(categories, options, ENCODER, tmp_path, where="a") == found


def test_means_over_synonyms() -> None:
    categories = [
        category(1, "cat", synonyms=["cat", "kitty", "pussy_cat"]),
        category(2, "dog", synonyms=["dog"]),
    ]
    options = TextOptions(avg_synonyms=True, prompt="none", fix_space=True)

    found = embed_categories(categories, options, ENCODER, where="a")

    parts = [ENCODER.encode([name]) for name in ("cat", "kitty", "pussy cat")]
    assert found.embeddings_CD is not None
    torch.testing.assert_close(found.embeddings_CD[0], torch.cat(parts).mean(dim=0))
    torch.testing.assert_close(found.embeddings_CD[1:], ENCODER.encode(["dog"]))
    assert found.prompts is None


def test_synonyms_are_needed_for_means() -> None:
    options = TextOptions(avg_synonyms=True)

    with pytest.raises(DatasetError, match="a: 1 categories without synonyms, the first 4"):
        class_texts([category(4, "cat")], options, where="a")


def test_wordnets_synonyms() -> None:
    table = {"n1": Synset("n1", "cat.n.01", ("cat", "true_cat"), "")}
    categories = [
        category(1, "kitty", synset="cat.n.01", synonyms=["kitty"]),
        category(2, "dog", synset="dog.n.01", synonyms=["dog", "hound"]),
        category(3, "owl"),
    ]

    found = with_wordnet_synonyms(categories, table)

    assert [c["synonyms"] for c in found] == [["cat", "true_cat"], ["dog", "hound"], ["owl"]]


def test_names_that_several_classes_have() -> None:
    categories = [
        category(3, "Crane", synset="crane.n.05"),
        category(1, "crane", synset="crane.n.04"),
        category(2, "owl"),
        category(4, "owl"),
        category(5, "dog"),
    ]

    names = unique_names(categories)
    found = embed_categories(categories, TextOptions(), ENCODER, where="a")

    assert names == ["crane (crane.n.04)", "owl (2)", "Crane (crane.n.05)", "owl (4)", "dog"]
    assert found.prompts == ("a crane", "a owl", "a Crane", "a owl", "a dog")
    assert found.embeddings_CD is not None
    assert torch.equal(found.embeddings_CD[1], found.embeddings_CD[3])
