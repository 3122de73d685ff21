"""Weight files for others: what is written, and what is added or left out on the way.

Every function takes tensors by name and returns a new dict; tensors are not changed.

Shapes: C classes, D embedding width.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ext_common.atomic_file import replacing
from ext_common.errors import VocabularyError, WeightsError
from ext_common.modeling.zero_shot_classifier import prepare_classifier
from ext_common.vocabulary import Vocabulary
from ext_common.weights_io import save_tensors_atomic, unwritable

SUFFIXES = (".pth", ".pkl", ".safetensors")
"""What :func:`write_weights` writes."""

_COUNTER = "num_batches_tracked"
_MEAN = "running_mean"
_COLUMNS, _FREQUENCIES = "cls_score.zs_weight", "freq_weight"
_PROJECTION = re.compile(r"(.*\.)cls_score\.linear\.weight")
_DETECTOR_PARTS = ("roi_heads.", "proposal_generator.")
# a pickle protocol that readers of plain arrays know: detectron2, and our safe reader
_PICKLE_PROTOCOL = 4


@dataclass(frozen=True)
class ExportedWeights:
    """Content of a weight file.

    Args:
        tensors: name -> tensor on the CPU.
        by_suffix: names are the ends of a detector's names (a backbone); written as
            ``matching_heuristics``.
        vocabulary: classes of the classifier; ``.pth`` files record it.
        mmdet: ``.pth`` files are laid out as mmdetection reads them.
    """

    tensors: Mapping[str, Tensor]
    by_suffix: bool = False
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    mmdet: bool = False


def is_detector(names: Mapping[str, Any]) -> bool:
    """Whether weights belong to a whole two-stage detector, not to a backbone."""
    return any(name.startswith(_DETECTOR_PARTS) for name in names)


def without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As older detectron2 wrote it: batch norms without ``num_batches_tracked``."""
    return {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}


def with_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As newer detectron2 writes it: every batch norm has ``num_batches_tracked`` (int64, 0)."""
    complete: dict[str, Tensor] = {}
    for name, value in tensors.items():
        complete[name] = value
        counter = f"{name.removesuffix(_MEAN)}{_COUNTER}"
        if name.endswith(f".{_MEAN}") and counter not in tensors:
            complete[counter] = torch.zeros((), dtype=torch.int64)
    return complete


def without_classes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what was made from the class list: classifier columns and class frequencies."""
    return {
        name: value
        for name, value in tensors.items()
        if not name.endswith((_COLUMNS, f".{_FREQUENCIES}"))
    }


def with_classes(
    tensors: Mapping[str, Tensor], vocabulary: Vocabulary, freq_weight_C: Tensor | None = None
) -> dict[str, Tensor]:
    """The same detector with the class columns of another vocabulary.

    Columns are normalised where those of the file were (or where it has none). All stages share one
    tensor. The frequencies of the old classes are left out.

    Args:
        tensors: of a detector with zero-shot classifiers (``*.cls_score.linear.weight`` [D, F]).
        vocabulary: C classes with embeddings [C, D].
        freq_weight_C: frequencies of the new classes, for federated training.

    Raises:
        WeightsError: no zero-shot classifier among the weights.
        VocabularyError: no embeddings, of another width, or another number of frequencies.
    """
    matches = [_PROJECTION.fullmatch(name) for name in tensors]
    predictors = [match[1] for match in matches if match is not None]
    if not predictors:
        raise WeightsError(
            "no zero-shot classifier in it: no name ends in cls_score.linear.weight",
            fix="class columns can be replaced in Detic's detectors only",
        )
    emb_CD = vocabulary.embeddings_CD
    if emb_CD is None:
        raise VocabularyError(
            f"{vocabulary!r} has no embeddings",
            fix="give a file that has them (.npy, .npz, .pth; docs/vocabulary.md)",
        )
    width = tensors[f"{predictors[0]}cls_score.linear.weight"].shape[0]
    if emb_CD.shape[1] != width:
        raise VocabularyError(
            f"embeddings of width {emb_CD.shape[1]}, the classifier's is {width}",
            fix="use embeddings of the text encoder that the detector was trained with",
        )
    if freq_weight_C is not None and len(freq_weight_C) != len(vocabulary):
        raise VocabularyError(
            f"{len(freq_weight_C)} class frequencies for {len(vocabulary)} classes"
        )
    columns = prepare_classifier(emb_CD, normalize=_is_normalised(tensors))
    replaced = without_classes(tensors)
    for predictor in predictors:
        replaced[f"{predictor}{_COLUMNS}"] = columns
        if freq_weight_C is not None:
            replaced[f"{predictor}{_FREQUENCIES}"] = freq_weight_C
    return replaced


def _is_normalised(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the class columns have length 1 (NORM_WEIGHT); the last one is the background."""
    columns_DK = next((tensors[name] for name in tensors if name.endswith(_COLUMNS)), None)
    if columns_DK is None:
        return True
    lengths_C = columns_DK[:, :-1].float().norm(dim=0)
    return bool(torch.allclose(lengths_C, torch.ones_like(lengths_C), atol=1e-3))


def write_weights(weights: ExportedWeights, path: str | Path) -> None:
    """Write a file that appears complete or not at all; its suffix says the kind.

    * ``.pth``: ``{"model": ...}``, for a backbone also ``matching_heuristics``, and the vocabulary;
      tensors and plain values only. For mmdetection ``{"state_dict": ..., "meta": {}}``.
    * ``.pkl``: detectron2's pickle of NumPy arrays (bfloat16 becomes float32).
    * ``.safetensors``: the tensors alone.

    Raises:
        WeightsError: another suffix, or the file cannot be written.
    """
    path = Path(path).expanduser()
    if weights.mmdet:
        _write_for_mmdet(weights, path)
        return
    if path.suffix == ".pkl":
        _write_pickle(weights, path)
    elif path.suffix == ".safetensors":
        save_tensors_atomic(_unshared(weights.tensors), path)
    elif path.suffix == ".pth":
        content: dict[str, Any] = {"model": dict(weights.tensors)}
        if weights.by_suffix:
            content["matching_heuristics"] = True
        if weights.vocabulary is not None:
            content["vocabulary"] = weights.vocabulary.state_dict()
        save_tensors_atomic(content, path)
    else:
        raise WeightsError(
            f"cannot write {path.suffix or 'a file without suffix'}",
            where=str(path),
            fix=f"use {', '.join(SUFFIXES)}",
        )


def _write_for_mmdet(weights: ExportedWeights, path: Path) -> None:
    if path.suffix != ".pth":
        raise WeightsError("mmdetection does not read it", where=str(path), fix="use .pth")
    save_tensors_atomic({"state_dict": dict(weights.tensors), "meta": {}}, path)


def _write_pickle(weights: ExportedWeights, path: Path) -> None:
    content = {
        "model": {name: _as_array(value) for name, value in weights.tensors.items()},
        "__author__": "third_party",
        "matching_heuristics": weights.by_suffix,
    }
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            pickle.dump(content, file, protocol=_PICKLE_PROTOCOL)
    except OSError as error:
        raise unwritable(path, error) from error


def _as_array(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu()
    array: NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return np.ascontiguousarray(array) if array.ndim else array


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors files cannot express."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        place = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return separate
