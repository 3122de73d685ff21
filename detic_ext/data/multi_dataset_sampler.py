"""Sampling weights over several datasets (specification 6.1).

Legend: N items of all datasets together, S datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.records import image_labels, object_classes
from ext_common.data.sampling import repeat_factors
from ext_common.errors import ConfigError, DatasetError


def multi_dataset_weights(
    sources_N: NDArray[np.integer[Any]],
    ratios_S: Sequence[float],
    factors_S: Sequence[NDArray[np.floating[Any]] | None],
) -> NDArray[np.float64]:
    """Sampling weight of every item.

    The items of dataset i together are drawn with a chance of ``ratio_i / sum of ratios``, whatever
    its size; the scale is such that an item of the largest dataset weighs its ratio's share.

    Args:
        sources_N: number of its dataset, per item.
        ratios_S: relative share of the samples, per dataset.
        factors_S: per dataset the repeat factors of its items in order, or None. They are scaled to
            a mean of 1, so that they leave the share of the dataset as it is.

    Returns:
        float64 [N], un-normalised.

    Raises:
        ConfigError: a ratio that is negative, or all are 0.
        DatasetError: a dataset without items.
    """
    ratios = np.asarray(ratios_S, dtype=np.float64)
    if (ratios < 0).any() or not ratios.sum() > 0:
        raise ConfigError(
            f"ratios {list(ratios_S)} are not shares",
            where="DATALOADER.DATASET_RATIO",
            fix="give one positive number per dataset",
        )
    sizes = np.bincount(sources_N, minlength=len(ratios))
    if (sizes == 0).any():
        raise DatasetError(f"training dataset {int(np.flatnonzero(sizes == 0)[0])} has no images")
    per_source = sizes.max() / sizes * ratios / ratios.sum()
    weights_N: NDArray[np.float64] = per_source[sources_N]
    for source, factors in enumerate(factors_S):
        if factors is not None:
            weights_N[sources_N == source] *= factors / factors.mean()
    return weights_N


def source_repeat_factors(
    records: Sequence[Mapping[str, Any]], ann_type: str, threshold: float
) -> NDArray[np.float64]:
    """Repeat factors of one dataset's records: of its boxes, or else of its image labels."""
    labels = object_classes if ann_type == "box" else image_labels
    return repeat_factors(labels(records), threshold)
