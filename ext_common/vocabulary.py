"""The vocabulary: which classes a detector is asked for, and the text embeddings that stand for them.

A vocabulary is a value that is passed in; there is no current one. Two predictors with different
vocabularies live in one process, and a checkpoint records the vocabulary that it was trained with.

Legend: C classes, D embedding width.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ext_common.errors import VocabularyError
from ext_common.vocabulary_checks import (
    checked_embeddings,
    checked_names,
    checked_prompts,
    comparison_key,
)
from ext_common.vocabulary_files import (
    DATASET_PREFIX,
    NameSource,
    VocabularyParts,
    dataset_names,
    find_source,
    read_parts,
    split_names,
    write_npz,
)
from ext_common.vocabulary_order import known_names
from ext_common.weights_io import save_tensors_atomic

logger = logging.getLogger(__name__)

STATE_FORMAT = 1
"""Version of :meth:`Vocabulary.state_dict`."""


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """Class names with, optionally, prompts and text embeddings. Immutable.

    Names are normalised (no blanks at the ends, single blanks inside); class ``i`` is row ``i`` everywhere.

    Args:
        names: C class names; no two may be equal up to case and blanks.
        prompts: C complete texts to encode instead of a template with the name in it, or None.
        embeddings_CD: text features, float, un-normalised (detic spec section 2), or None. They are
            copied to float32 on the CPU; treat the copy as read-only.
        encoder_id: which encoder made the embeddings; empty where that is unknown.

    Raises:
        VocabularyError: no name, an empty or repeated name, a number of prompts or rows other than
            C, values that are not finite, or a row of zeros.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...] | None = None
    embeddings_CD: Tensor | None = None
    encoder_id: str = ""

    def __post_init__(self) -> None:
        names = checked_names(self.names)
        object.__setattr__(self, "names", names)
        if self.prompts is not None:
            object.__setattr__(self, "prompts", checked_prompts(self.prompts, len(names)))
        if self.embeddings_CD is not None:
            emb_CD = checked_embeddings(self.embeddings_CD, names)
            object.__setattr__(self, "embeddings_CD", emb_CD)
        object.__setattr__(self, "encoder_id", str(self.encoder_id))

    @classmethod
    def from_names(cls, names: Sequence[str], prompts: Sequence[str] | None = None) -> Vocabulary:
        """Names (and prompts) without embeddings."""
        return cls(tuple(names), None if prompts is None else tuple(prompts))

    @classmethod
    def from_embeddings(
        cls,
        names: Sequence[str],
        embeddings_CD: Tensor | np.ndarray[Any, Any],
        encoder_id: str,
        prompts: Sequence[str] | None = None,
    ) -> Vocabulary:
        """Names with their text features [C, D]; ``encoder_id`` may be empty where unknown."""
        emb_CD = torch.as_tensor(embeddings_CD)
        return cls(tuple(names), None if prompts is None else tuple(prompts), emb_CD, encoder_id)

    @classmethod
    def from_dataset(cls, name: str) -> Vocabulary:
        """Class names of a registered dataset, in the order of its contiguous ids.

        Raises:
            VocabularyError: no such dataset, or it has no ``thing_classes``.
        """
        with _place(f"{DATASET_PREFIX}{name}"):
            return cls.from_names(dataset_names(name))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        names: Sequence[str] | None = None,
        encoder_id: str = "",
        generate_names: bool = False,
        fallback_names: Callable[[int], Sequence[str] | None] | None = None,
    ) -> Vocabulary:
        """Names or embeddings from a file; docs/vocabulary.md lists the kinds.

        Args:
            path: ``.txt``, ``.json``, ``.npy``, ``.npz``, ``.pth`` or ``.pt``.
            names: class names for a file that has rows only; wins over names beside the file.
            encoder_id: what made the rows, for a file that does not say.
            generate_names: call the rows of a file without names ``class_0``, ``class_1``, ...
            fallback_names: class names by the number of rows, for rows that have none or such ones;
                None = it knows none. Names of the file win: a dataset in another order, say, must
                not rename its rows.

        Raises:
            VocabularyError: as for the class; no such file, unknown kind, or rows without names.
            WeightsError: a ``.pth``/``.pt`` file that cannot be read safely.
        """
        with _place(str(path)):
            parts = read_parts(Path(path).expanduser())
            own = None if parts.names is None else known_names(parts.names)
            rows = parts.embeddings_CD
            if names is None and own is None and rows is not None and fallback_names is not None:
                names = fallback_names(len(rows))
            return cls._from_parts(parts, names, encoder_id, generate_names)

    @classmethod
    def parse(
        cls,
        spec: str | Path,
        *,
        names: Sequence[str] | None = None,
        encoder_id: str = "",
        generate_names: bool = False,
    ) -> Vocabulary:
        """What a user writes on a command line or in ``MODEL.VOCABULARY``.

        Args:
            spec: a comma-separated list (``cat, "lamp, floor"``), a file, ``dataset:NAME``, or the
                bare name of a registered dataset.
            names: as for :meth:`from_file`, for an embedding file only.
            encoder_id: as for :meth:`from_file`.
            generate_names: as for :meth:`from_file`.

        Raises:
            VocabularyError: as for :meth:`from_file` and :meth:`from_dataset`.
        """
        source, value = find_source(spec)
        if source is NameSource.FILE:
            return cls.from_file(
                value, names=names, encoder_id=encoder_id, generate_names=generate_names
            )
        if names is not None:
            raise VocabularyError(
                "names are given twice", where=str(spec), fix="give names with a file of rows only"
            )
        if source is NameSource.DATASET:
            return cls.from_dataset(value)
        with _place("vocabulary"):
            return cls.from_names(split_names(value))

    @classmethod
    def _from_parts(
        cls,
        parts: VocabularyParts,
        names: Sequence[str] | None,
        encoder_id: str,
        generate_names: bool,
    ) -> Vocabulary:
        chosen = names if names is not None else parts.names
        if chosen is None and generate_names and parts.embeddings_CD is not None:
            chosen = [f"class_{row}" for row in range(len(parts.embeddings_CD))]
        if chosen is None:
            raise VocabularyError(
                "the file has rows but no class names",
                fix="put the names beside it (same name, .txt or .json), or ask for generated names",
            )
        return cls(
            tuple(chosen),
            None if parts.prompts is None else tuple(parts.prompts),
            parts.embeddings_CD,
            parts.encoder_id or encoder_id,
        )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        width = "none" if self.embeddings_CD is None else f"{tuple(self.embeddings_CD.shape)}"
        return f"Vocabulary({len(self)} names: {shown}; embeddings {width} {self.encoder_id!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        if (self.names, self.prompts, self.encoder_id) != (
            other.names,
            other.prompts,
            other.encoder_id,
        ):
            return False
        if self.embeddings_CD is None or other.embeddings_CD is None:
            return self.embeddings_CD is other.embeddings_CD
        return torch.equal(self.embeddings_CD, other.embeddings_CD)

    def __hash__(self) -> int:
        return hash((self.names, self.prompts, self.encoder_id))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {comparison_key(name): row for row, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """Row of a class, whatever the case and blanks of ``name``.

        Raises:
            VocabularyError: no such class; the nearest name is suggested.
        """
        row = self._rows.get(comparison_key(name))
        if row is None:
            near = difflib.get_close_matches(comparison_key(name), self._rows, n=1)
            raise VocabularyError(
                f"no class {name!r} among {len(self)} names",
                fix=f"did you mean {self.names[self._rows[near[0]]]!r}?" if near else "",
            )
        return row

    def with_embeddings(self, embeddings_CD: Tensor, encoder_id: str) -> Vocabulary:
        """The same names and prompts with other text features [C, D]."""
        return Vocabulary(self.names, self.prompts, embeddings_CD, encoder_id)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only, so that a tensors-only checkpoint reader accepts it."""
        return {
            "format": STATE_FORMAT,
            "names": list(self.names),
            "prompts": None if self.prompts is None else list(self.prompts),
            "embeddings": None if self.embeddings_CD is None else self.embeddings_CD.clone(),
            "encoder_id": self.encoder_id,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Vocabulary:
        """Inverse of :meth:`state_dict`.

        Raises:
            VocabularyError: not such a dict, or made by a newer version.
        """
        if not isinstance(state, Mapping) or "names" not in state:
            raise VocabularyError("not a saved vocabulary: it has no names")
        if state.get("format", STATE_FORMAT) != STATE_FORMAT:
            raise VocabularyError(
                f"saved in format {state['format']}, this version reads format {STATE_FORMAT}",
                fix="use the version that wrote it, or a newer one",
            )
        prompts, embeddings = state.get("prompts"), state.get("embeddings")
        return cls(
            tuple(state["names"]),
            None if prompts is None else tuple(prompts),
            embeddings,
            state.get("encoder_id", ""),
        )

    def save(self, path: str | Path) -> None:
        """Write names, prompts, embeddings and encoder id to a ``.npz`` or ``.pth`` file.

        Raises:
            VocabularyError: another suffix, or no embeddings for ``.npz``.
            WeightsError: the file cannot be written.
        """
        path = Path(path).expanduser()
        if path.suffix in (".pth", ".pt"):
            save_tensors_atomic(self.state_dict(), path)
        elif path.suffix == ".npz" and self.embeddings_CD is not None:
            write_npz(path, self.names, self.prompts, self.embeddings_CD.numpy(), self.encoder_id)
        elif path.suffix == ".npz":
            raise VocabularyError(
                "no embeddings to save",
                where=str(path),
                fix="embed it first, or save names as .pth",
            )
        else:
            raise VocabularyError(
                f"cannot save as {path.suffix or 'a file without suffix'}",
                where=str(path),
                fix="use .npz or .pth",
            )


def require_encoder(vocabulary: Vocabulary, encoder_id: str, dim: int) -> Tensor:
    """The embeddings of a vocabulary, if they are what a head was made for.

    Args:
        vocabulary: with embeddings.
        encoder_id: the encoder of the head's training vocabulary; empty where unknown.
        dim: the head's embedding width D (``ZEROSHOT_WEIGHT_DIM``).

    Returns:
        The embeddings, float32 [C, ``dim``] on the CPU, un-normalised.

    Raises:
        VocabularyError: no embeddings, another width, or another encoder. Where either encoder is
            unknown only the width is compared, and that is logged as a warning.
    """
    emb_CD = vocabulary.embeddings_CD
    if emb_CD is None:
        raise VocabularyError(
            f"{vocabulary!r} has no embeddings", fix="embed it with the head's text encoder first"
        )
    if emb_CD.shape[1] != dim:
        raise VocabularyError(
            f"embeddings of shape {list(emb_CD.shape)}, expected [{len(vocabulary)}, {dim}]",
            fix="use embeddings of the text encoder that the head was trained with",
        )
    if vocabulary.encoder_id and encoder_id and vocabulary.encoder_id != encoder_id:
        raise VocabularyError(
            f"embeddings come from encoder {vocabulary.encoder_id!r}, "
            f"but the head was trained with {encoder_id!r}",
            fix="embed the names again with the head's text encoder",
        )
    if vocabulary.encoder_id != encoder_id:
        logger.warning(
            "Encoder of the embeddings %r, of the head %r: one is unknown, only the width was "
            "compared.",
            vocabulary.encoder_id,
            encoder_id,
        )
    return emb_CD


@contextmanager
def _place(where: str) -> Iterator[None]:
    """Say in which source a vocabulary is wrong."""
    try:
        yield
    except VocabularyError as error:
        if error.where:
            raise
        raise VocabularyError(error.what, where=where, fix=error.fix) from error.__cause__
