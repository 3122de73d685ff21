"""The tensors of a weight file, whatever project wrote it and however it is wrapped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ext_common.errors import WeightsError
from ext_common.weights_io import load_tensors

# checkpoints of: detectron2 and most others; torchvision references, MoCo; pycls
_WRAPPERS = ("model", "state_dict", "model_state")
_DDP_PREFIX = "module."


@dataclass(frozen=True)
class StoredWeights:
    """What one file says about a model.

    Args:
        tensors: name -> tensor on the CPU.
        by_suffix: names are the ends of a detector's names (a file with ``matching_heuristics``).
        caffe2: written by Detectron of 2018; names are already translated.
        vocabulary: the recorded vocabulary (``Vocabulary.state_dict``), if there is one.
    """

    tensors: Mapping[str, Tensor]
    by_suffix: bool = False
    caffe2: bool = False
    vocabulary: Mapping[str, Any] | None = None


def read_weights(path: str | Path, *, allow_unsafe: bool = False) -> StoredWeights:
    """Read a file of weights or a checkpoint that holds them.

    Args:
        path: a local file of any kind that :func:`ext_common.weights_io.load_tensors` reads.
        allow_unsafe: as there.

    Raises:
        WeightsError: as there, an address instead of a file, or nothing in it that looks like
            weights.
    """
    if re.match(r"[a-z0-9+.-]{2,}://", str(path), re.IGNORECASE):
        raise WeightsError(
            f"{path} is an address, and weights are not downloaded",
            fix="download the file yourself and give its path",
        )
    return unwrap(load_tensors(path, allow_unsafe=allow_unsafe), str(path))


def unwrap(content: Mapping[str, Any], path: str) -> StoredWeights:
    """Find the tensors in a file's content; ``path`` is for messages and tells ``.pkl`` files."""
    author = content.get("__author__")
    vocabulary = content.get("vocabulary")
    if path.endswith(".pkl") and not ("model" in content and author):
        # Caffe2 wraps detectors in "blobs", ImageNet models not at all
        blobs = content.get("blobs", content)
        tensors = _tensors(blobs, path)
        return StoredWeights(_translate_caffe2(tensors), by_suffix=True, caffe2=True)
    caffe2 = author == "Caffe2"
    by_suffix = bool(content.get("matching_heuristics", False))
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = _strip_prefix(_tensors(content, path))
    if by_suffix and caffe2:
        tensors = _translate_caffe2(tensors)
    return StoredWeights(
        tensors,
        by_suffix=by_suffix,
        caffe2=caffe2,
        vocabulary=vocabulary if isinstance(vocabulary, Mapping) else None,
    )


def _tensors(content: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The tensors of a flat dict; NumPy arrays are converted, momentum and plain values left out."""
    tensors = {
        str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in content.items()
        if isinstance(value, Tensor | np.ndarray) and not str(name).endswith("_momentum")
    }
    if not tensors:
        raise WeightsError(
            f"no tensors below its keys {', '.join(map(str, list(content)[:5]))}",
            where=path,
            fix='a state dict, or a dict with one under "model" or "state_dict", is needed',
        )
    return tensors


def _strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DistributedDataParallel puts in front."""
    if all(name.startswith(_DDP_PREFIX) for name in tensors):
        return {name.removeprefix(_DDP_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def _translate_caffe2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

    renamed: dict[str, Tensor]
    renamed, _ = convert_c2_detectron_names(tensors)
    return renamed
