"""How many training images show each class, and the weights that follow from it.

Shapes: C classes. Source: Detic specification section 3 (frequency file, ignore zero categories).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ext_common.errors import DatasetError

_SEEN = 1e-4  # a frequency weight above this means that the class has training images


def read_image_counts(path: str | Path) -> list[float]:
    """Images per class from a JSON list of ``{"id": ..., "image_count": ...}`` records.

    LVIS's category files have this form; other fields are ignored.

    Returns:
        One count per record, in order of ascending id.

    Raises:
        DatasetError: the file is missing, is not such a list, or repeats an id.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"the class frequency file cannot be read ({error.strerror})",
            where=str(path),
            fix="set MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH to a file of {id, image_count} records",
        ) from error
    except ValueError as error:
        raise DatasetError(f"not a JSON file ({error})", where=str(path)) from error
    return image_counts(records, where=str(path))


def image_counts(records: Sequence[Mapping[str, Any]], *, where: str = "") -> list[float]:
    """Counts of ``{"id", "image_count"}`` records by ascending id, e.g. from dataset metadata.

    Args:
        records: one mapping per class, ids of any start and with gaps.
        where: name for error messages.

    Raises:
        DatasetError: a record without these fields, a negative count, a repeated id, no records.
    """
    if not isinstance(records, list | tuple) or not records:
        raise DatasetError("expected a list of {id, image_count} records", where=where)
    counts: dict[int, float] = {}
    for record in records:
        try:
            number, count = int(record["id"]), float(record["image_count"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"record {str(record)[:80]} has no numeric id and image_count",
                where=where,
                fix="write image_count for every category, 0 where there are no images",
            ) from error
        if number in counts:
            raise DatasetError(f"class id {number} appears twice", where=where)
        if not 0 <= count < float("inf"):
            raise DatasetError(f"class id {number} has image_count {count}", where=where)
        counts[number] = count
    return [counts[number] for number in sorted(counts)]


def frequency_weight(
    counts: Sequence[float], *, power: float = 0.5, num_classes: int | None = None
) -> Tensor:
    """``image_count ** power`` as float32 ``[C]``, the buffer ``freq_weight`` of checkpoints.

    Args:
        counts: images per class.
        power: FED_LOSS_FREQ_WEIGHT.
        num_classes: C; classes beyond ``counts`` get 0, so they are never sampled as negatives.

    Raises:
        DatasetError: more counts than classes.
    """
    weight_C = torch.tensor(counts, dtype=torch.float32).pow(power)
    if num_classes is None:
        return weight_C
    if len(counts) > num_classes:
        raise DatasetError(
            f"{len(counts)} class frequencies for {num_classes} classes",
            fix="use the frequency file of this vocabulary",
        )
    return torch.cat([weight_C, weight_C.new_zeros(num_classes - len(counts))])


def seen_class_weight(freq_weight_C: Tensor) -> Tensor:
    """1 for classes with training images, else 0 (IGNORE_ZERO_CATS): no gradient without data."""
    return (freq_weight_C > _SEEN).to(freq_weight_C.dtype)
