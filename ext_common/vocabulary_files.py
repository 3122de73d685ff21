"""Where a vocabulary comes from: lists, text, JSON, arrays, tensors, registered datasets.

Readers here return what a source holds; :class:`ext_common.vocabulary.Vocabulary` checks it.

Legend: C classes, D embedding width.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ext_common.atomic_file import writing
from ext_common.errors import ExtError, VocabularyError
from ext_common.weights_io import load_plain, unwritable

DATASET_PREFIX = "dataset:"
NAME_SUFFIXES = (".txt", ".json")
ROW_SUFFIXES = (".npy", ".npz", ".pth", ".pt")

# one item of a comma list: "quoted, with "" for a quote" or anything without a comma
_ITEM = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*)"\s*|(?P<plain>[^,]*))(?P<end>,|$)')


class NameSource(enum.Enum):
    """What a vocabulary specification turned out to be."""

    NAMES = "names"
    FILE = "file"
    DATASET = "dataset"


@dataclass(frozen=True)
class VocabularyParts:
    """What a file holds; None or empty where it says nothing."""

    names: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    embeddings_CD: Tensor | None = None
    encoder_id: str = ""


def find_source(spec: str | Path) -> tuple[NameSource, str]:
    """Tell a file, a dataset and a list of names apart.

    Returns:
        The kind, and the path, dataset name or list.

    Raises:
        VocabularyError: a file name of a known kind without such a file.
    """
    text = str(spec).strip()
    if text.startswith(DATASET_PREFIX):
        return NameSource.DATASET, text[len(DATASET_PREFIX) :].strip()
    if isinstance(spec, Path) or _is_file(text):
        return NameSource.FILE, text
    if not text or "," in text or '"' in text:
        return NameSource.NAMES, text
    if Path(text).suffix.lower() in NAME_SUFFIXES + ROW_SUFFIXES:
        raise VocabularyError(
            "no such file", where=text, fix="check the path; a list of names has commas"
        )
    from detectron2.data import DatasetCatalog

    if text in DatasetCatalog.list():
        return NameSource.DATASET, text
    return NameSource.NAMES, text


def split_names(text: str) -> list[str]:
    """Split ``cat, "lamp, floor", dog``; blanks are trimmed and empty items skipped.

    Raises:
        VocabularyError: a quote that is not closed, or text after a closing quote.
    """
    names: list[str] = []
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        assert item is not None  # the plain alternative matches anything
        plain = (item["plain"] or "").strip()
        if plain.startswith('"'):
            raise VocabularyError(
                f"a quote is not closed, or text follows it, in {plain!r}",
                where=f"name {len(names) + 1}",
                fix='write "a, b" for a name with a comma, and "" for a quote inside',
            )
        name = plain if item["quoted"] is None else item["quoted"].replace('""', '"').strip()
        if name:
            names.append(name)
        position = item.end()
    return names


def dataset_names(name: str) -> list[str]:
    """``thing_classes`` of a registered dataset; its annotations are loaded if need be.

    Raises:
        VocabularyError: not registered, not readable, or without classes.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    known = DatasetCatalog.list()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise VocabularyError(
            f"no dataset {name!r} is registered",
            fix=f"did you mean {near[0]}?" if near else "register it first (DATASETS.REGISTRY)",
        )
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "thing_classes"):
        try:  # some datasets learn their classes from the annotation file only
            DatasetCatalog.get(name)
        except (OSError, ValueError, KeyError, ExtError) as error:
            raise VocabularyError(
                f"the annotations that name its classes cannot be read: {error}"
            ) from error
    classes = getattr(metadata, "thing_classes", None)
    if not classes:
        raise VocabularyError("the dataset has no thing_classes", fix="choose another vocabulary")
    return list(classes)


def read_parts(path: Path) -> VocabularyParts:
    """Read a vocabulary file of any kind.

    Raises:
        VocabularyError: no such file, unknown kind, or content that is no vocabulary.
        WeightsError: a ``.pth``/``.pt`` file that cannot be read safely.
    """
    if not path.is_file():
        raise VocabularyError("no such file", fix="check the path and the folder")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return VocabularyParts(names=_text_lines(path))
    if suffix == ".json":
        return VocabularyParts(names=_json_names(path))
    if suffix == ".npy":
        return _with_names_beside(path, VocabularyParts(embeddings_CD=_tensor(_load_numpy(path))))
    if suffix == ".npz":
        return _with_names_beside(path, _npz_parts(path))
    if suffix in (".pth", ".pt"):
        return _with_names_beside(path, _torch_parts(path))
    raise VocabularyError(
        f"unknown kind of vocabulary file {suffix or '(no suffix)'!r}",
        fix=f"use one of {' '.join(NAME_SUFFIXES + ROW_SUFFIXES)}",
    )


def write_npz(
    path: Path,
    names: Sequence[str],
    prompts: Sequence[str] | None,
    emb_CD: np.ndarray[Any, Any],
    encoder_id: str,
) -> None:
    """Write arrays ``names``, ``embeddings``, ``encoder_id`` and, if any, ``prompts`` (no pickles).

    Raises:
        WeightsError: the file cannot be written.
    """
    arrays = {
        "names": np.array(names, np.str_),
        "embeddings": emb_CD,
        "encoder_id": np.array(encoder_id, np.str_),
    }
    if prompts is not None:
        arrays["prompts"] = np.array(prompts, np.str_)
    try:
        with writing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise unwritable(path, error) from error


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # a long list is no valid file name
        return False


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # -sig: a byte order mark is tolerated
    except UnicodeDecodeError as error:
        raise VocabularyError(f"not UTF-8 text: {error}", fix="save it as UTF-8") from None


def _text_lines(path: Path) -> list[str]:
    """One name per line, literally (commas and # are part of a name); blank lines are skipped."""
    return [line.strip() for line in _read_text(path).splitlines() if line.strip()]


def _json_names(path: Path) -> list[str]:
    """A list of names, a list of LVIS/COCO categories, or an annotation file with ``categories``."""
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise VocabularyError(f"not valid JSON: {error}") from None
    if isinstance(content, dict):
        content = content.get("categories")
    if not isinstance(content, list):
        raise VocabularyError("expected a list of names or LVIS/COCO `categories`")
    if not content or not isinstance(content[0], dict):
        return content
    for place, category in enumerate(content):
        if not isinstance(category, dict) or not isinstance(category.get("id"), int):
            raise VocabularyError(f"category {place} has no integer id: {category!r}")
        if "name" not in category:
            raise VocabularyError(f"category {place} has no name: {category!r}")
    repeated, times = Counter(category["id"] for category in content).most_common(1)[0]
    if times > 1:
        raise VocabularyError(f"category id {repeated} is given twice", fix="give each its own id")
    # rows follow the ids, as in the released classifiers and in detectron2's contiguous ids
    return [category["name"] for category in sorted(content, key=lambda c: c["id"])]


def _with_names_beside(path: Path, parts: VocabularyParts) -> VocabularyParts:
    """Names for a file of rows only: the text or JSON file of the same name beside it."""
    if parts.names is not None:
        return parts
    for suffix in NAME_SUFFIXES:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            names = _text_lines(beside) if suffix == ".txt" else _json_names(beside)
            return VocabularyParts(names, parts.prompts, parts.embeddings_CD, parts.encoder_id)
    return parts


def _load_numpy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VocabularyError(
            f"not a readable NumPy file: {error}", fix="save plain arrays again, without objects"
        ) from error


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = getattr(array, "dtype", type(array).__name__)
        raise VocabularyError(f"embeddings are {kind}, not floating-point numbers")
    return torch.from_numpy(array.astype(np.float32))


def _npz_parts(path: Path) -> VocabularyParts:
    loaded = _load_numpy(path)
    try:
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise VocabularyError(
            f"damaged, or arrays of objects: {error}", fix="save plain arrays again"
        ) from error
    if "embeddings" not in arrays:
        raise VocabularyError(
            f"no array `embeddings` among {sorted(arrays)}",
            fix="expected arrays: names, embeddings, encoder_id",
        )
    return VocabularyParts(
        names=[str(name) for name in arrays["names"].ravel()] if "names" in arrays else None,
        prompts=[str(text) for text in arrays["prompts"].ravel()] if "prompts" in arrays else None,
        embeddings_CD=_tensor(arrays["embeddings"]),
        encoder_id=str(arrays["encoder_id"]) if "encoder_id" in arrays else "",
    )


def _torch_parts(path: Path) -> VocabularyParts:
    """A bare tensor [C, D] ([D] for one class), or a dict of ``Vocabulary.state_dict``."""
    content = load_plain(path)
    if isinstance(content, Tensor):
        # RegionCLIP's files of a single concept are [D]
        return VocabularyParts(embeddings_CD=content[None] if content.ndim == 1 else content)
    if not isinstance(content, Mapping) or not {"names", "embeddings"} & content.keys():
        raise VocabularyError(
            f"holds a {type(content).__name__} without names or embeddings",
            fix="expected a tensor [C, D] or a saved vocabulary",
        )
    return VocabularyParts(
        names=content.get("names"),
        prompts=content.get("prompts"),
        embeddings_CD=content.get("embeddings"),
        encoder_id=str(content.get("encoder_id", "")),
    )
