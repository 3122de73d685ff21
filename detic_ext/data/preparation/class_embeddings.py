"""Text features of a class list as the authors made them (specification 10, dump_clip_features).

Legend: C classes, D embedding width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from detic_ext.data.preparation.synset_table import Synset
from ext_common.errors import DatasetError, VocabularyError
from ext_common.text_encoder import TextEncoder, embed_vocabulary
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_checks import comparison_key

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "a": "a {}",
        "none": "{}",
        "photo": "a photo of a {}",
        "scene": "a photo of a {} in the scene",
    }
)
"""The authors' prompts by name; the published features have "a"."""


@dataclass(frozen=True)
class TextOptions:
    """How class names become texts.

    Args:
        prompt: one of :data:`PROMPTS`.
        fix_space: blanks for the underscores of names; the published features keep underscores.
        use_underscore: underscores for the blanks of names.
        drop_parentheses: leave out parts of names in parentheses, as "(decorative_ribbons)".
        avg_synonyms: mean of the features of all synonyms instead of the feature of the name.
    """

    prompt: str = "a"
    fix_space: bool = False
    use_underscore: bool = False
    drop_parentheses: bool = False
    avg_synonyms: bool = False

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise VocabularyError(
                f"unknown prompt {self.prompt!r}", fix=f"one of {', '.join(PROMPTS)}"
            )
        if self.fix_space and self.use_underscore:
            raise VocabularyError("fix_space and use_underscore contradict each other")

    def text(self, name: str) -> str:
        """The complete text for a name."""
        if self.fix_space:
            name = name.replace("_", " ")
        if self.drop_parentheses:
            name = _without_parentheses(name)
        if self.use_underscore:
            name = "_".join(name.split())
        return PROMPTS[self.prompt].replace("{}", name)


def class_texts(
    categories: Sequence[Mapping[str, Any]], options: TextOptions, *, where: str
) -> list[list[str]]:
    """The texts of every class in order of ids; several with ``avg_synonyms``.

    Raises:
        DatasetError: ``avg_synonyms`` and a category without synonyms.
    """
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    if not options.avg_synonyms:
        return [[options.text(category["name"])] for category in ordered]
    without = [category["id"] for category in ordered if not category.get("synonyms")]
    if without:
        raise DatasetError(
            f"{len(without)} categories without synonyms, the first {without[0]}",
            where=where,
            fix="leave out --avg-synonyms, or use the LVIS v1 categories",
        )
    return [[options.text(name) for name in category["synonyms"]] for category in ordered]


def with_wordnet_synonyms(
    categories: Sequence[Mapping[str, Any]], synsets: Mapping[str, Synset]
) -> list[dict[str, Any]]:
    """Categories whose synonyms are the words of their synset, where the table has it."""
    lemmas = {synset.name: list(synset.lemmas) for synset in synsets.values()}
    return [
        {**c, "synonyms": lemmas.get(str(c.get("synset")), c.get("synonyms", [c["name"]]))}
        for c in categories
    ]


def embed_categories(
    categories: Sequence[Mapping[str, Any]],
    options: TextOptions,
    encoder: TextEncoder,
    cache_dir: str | Path | None = None,
    *,
    where: str,
) -> Vocabulary:
    """A vocabulary with un-normalised text features, rows in order of category ids.

    Names that several classes have (ImageNet-21k has two cranes) get the synset, or the id, behind
    them; the texts that are encoded stay as they are.

    Args:
        categories: ``id``, ``name``; where needed ``synset``, ``synonyms``.
        options: see :class:`TextOptions`.
        encoder: makes the features.
        cache_dir: see :func:`ext_common.text_encoder.embed_vocabulary`.
        where: where the categories come from, for messages.

    Raises:
        DatasetError, VocabularyError: categories that cannot be embedded.
    """
    texts = class_texts(categories, options, where=where)
    names = unique_names(categories)
    flat = list(dict.fromkeys(text for group in texts for text in group))
    # numbers as names: texts that differ in case only are no repetition here
    numbered = Vocabulary.from_names([str(place) for place in range(len(flat))], prompts=flat)
    features = embed_vocabulary(numbered, encoder, (), cache_dir).embeddings_CD
    assert features is not None
    row_of = {text: row for row, text in enumerate(flat)}
    emb_CD: Tensor = torch.stack(
        [features[[row_of[text] for text in group]].mean(dim=0) for group in texts]
    )
    prompts = [group[0] for group in texts] if all(len(group) == 1 for group in texts) else None
    return Vocabulary.from_embeddings(names, emb_CD, encoder.encoder_id, prompts)


def unique_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names in order of ids; those that stand more than once with their synset or id behind."""
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    times = Counter(comparison_key(category["name"]) for category in ordered)
    return [
        category["name"]
        if times[comparison_key(category["name"])] == 1
        else f"{category['name']} ({category.get('synset') or category['id']})"
        for category in ordered
    ]


def _without_parentheses(name: str) -> str:
    kept, depth = [], 0
    for char in name:
        depth += char == "("
        if not depth:
            kept.append(char)
        depth -= char == ")" and depth > 0
    return "".join(kept).strip(" _")
