"""A class subset for one step, and labels renumbered to it (DYNAMIC_CLASSIFIER).

Shapes: R regions, C classes, S classes of the subset, B images.
Source: Detic specification sections 3 (id_map) and 5 (DYNAMIC_CLASSIFIER).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detic_ext.losses.federated import draw_order
from detic_ext.losses.image_label_batch import host_to_device
from ext_common.errors import ConfigError


@dataclass(frozen=True)
class ClassSubset:
    """The classes of this step's classifier. Both tensors stay on the host.

    Attributes:
        class_ids_S: int64 distinct class numbers, in order of the new columns.
        local_ids_C1: int64 ``[C + 1]``: new column of each class; S for classes outside the
            subset and for the background.
    """

    class_ids_S: Tensor
    local_ids_C1: Tensor

    @classmethod
    def of(cls, class_ids: Iterable[int], num_classes: int) -> ClassSubset:
        """The subset of these classes.

        Raises:
            ConfigError: a class outside 0..C-1, or twice.
        """
        ids = [int(number) for number in class_ids]
        if len(set(ids)) < len(ids) or any(not 0 <= number < num_classes for number in ids):
            raise ConfigError(f"not distinct classes below {num_classes}: {ids[:10]}")
        class_ids_S = torch.tensor(ids, dtype=torch.int64)
        local_ids_C1 = torch.full((num_classes + 1,), len(ids), dtype=torch.int64)
        local_ids_C1[class_ids_S] = torch.arange(len(ids))
        return cls(class_ids_S, local_ids_C1)

    @property
    def num_classes(self) -> int:
        """S, which is also the number of the background column."""
        return self.class_ids_S.numel()

    def columns(self, device: torch.device) -> Tensor:
        """``[S + 1]`` columns of the full classifier: the subset, then the background."""
        background = torch.tensor([self.local_ids_C1.numel() - 1])
        return host_to_device(torch.cat([self.class_ids_S, background]), device)

    def map_labels(self, labels_R: Tensor) -> Tensor:
        """Labels 0..C as new labels 0..S (absent classes become background)."""
        return host_to_device(self.local_ids_C1, labels_R.device)[labels_R]

    def map_label_lists(self, labels: Sequence[Sequence[int]]) -> list[list[int]]:
        """The same for the label lists of images."""
        return [[int(self.local_ids_C1[label]) for label in image] for image in labels]


def sample_class_subset(
    present: Iterable[int],
    size: int,
    num_classes: int,
    *,
    weight_C: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> ClassSubset:
    """The classes present, completed to ``size`` by drawing without replacement.

    Args:
        present: classes of the batch's annotations (no background); repeats allowed. All are kept,
            even if there are more than ``size``.
        size: NUM_SAMPLE_CATS.
        num_classes: C.
        weight_C: drawing weights on the host (box batches: class frequencies, where classes
            beyond the frequency file have weight 0); None = uniform (image-label batches).
        generator: source of randomness on the host; None = the global one.

    Returns:
        Present classes ascending, then the drawn ones; fewer than ``size`` if the other classes
        with positive weight do not suffice.
    """
    kept = sorted({int(number) for number in present})
    weight_C = torch.ones(num_classes) if weight_C is None else weight_C.clone()
    weight_C[torch.tensor(kept, dtype=torch.int64)] = 0
    missing = min(max(size - len(kept), 0), int((weight_C > 0).sum()))
    drawn = draw_order(weight_C, generator).topk(missing).indices.tolist()
    return ClassSubset.of([*kept, *drawn], num_classes)
