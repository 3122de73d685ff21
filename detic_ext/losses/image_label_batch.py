"""A batch of images with labels but no boxes, and the regions a loss chose to learn from.

Shapes: B images, R regions of all images (image after image), M chosen regions,
P pairs of one image and one of its labels, N regions of the largest image.
Boxes are XYXY in absolute pixels. Source: Detic specification section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from ext_common.errors import DatasetError


@dataclass(frozen=True)
class Selection:
    """Which regions answer for which labels.

    Attributes:
        rows_M: int64 region numbers (of R); only these need logits.
        slot_P: int64 position in ``rows_M`` of each pair's region.
        label_P: int64 class of each pair.
        weight_P: float64 ``1 / (B * number of labels of the image)``.
    """

    rows_M: Tensor
    slot_P: Tensor
    label_P: Tensor
    weight_P: Tensor


@dataclass(frozen=True)
class ImageLabelBatch:
    """Regions and labels of a batch. Sizes and labels live on the host, so nothing has to wait.

    Attributes:
        boxes_R4: regions after clipping to the image, by descending objectness within an image;
            the appended whole-image box, where there is one, is an image's last.
        num_boxes: regions per image; 0 is allowed, such an image adds nothing to the loss.
        labels: classes present in each image (column numbers of this call's classifier); an
            empty list adds nothing to the loss.
        image_sizes: (height, width) in pixels.
        num_classes: labels run from 0 to ``num_classes - 1``.

    Raises:
        DatasetError: the lists do not describe the same images, or a label is out of range.
    """

    boxes_R4: Tensor
    num_boxes: Sequence[int]
    labels: Sequence[Sequence[int]]
    image_sizes: Sequence[tuple[int, int]]
    num_classes: int

    def __post_init__(self) -> None:
        counts = {len(self.num_boxes), len(self.labels), len(self.image_sizes)}
        if len(counts) > 1 or sum(self.num_boxes) != self.boxes_R4.shape[0]:
            raise DatasetError(
                f"{self.boxes_R4.shape[0]} boxes for {list(self.num_boxes)} boxes per image, "
                f"{len(self.labels)} label lists and {len(self.image_sizes)} image sizes",
                fix="give one entry per image",
            )
        for image, label in ((i, label) for i, ls in enumerate(self.labels) for label in ls):
            if not 0 <= label < self.num_classes:
                raise DatasetError(
                    f"image {image} of the batch has label {label}, "
                    f"the classifier has {self.num_classes} classes",
                    fix="check MODEL.ROI_HEADS.NUM_CLASSES and the data set's categories",
                )

    @property
    def num_images(self) -> int:
        """B."""
        return len(self.num_boxes)

    @cached_property
    def first_rows(self) -> list[int]:
        """Number of each image's first region."""
        return [end - n for end, n in zip(accumulate(self.num_boxes), self.num_boxes, strict=True)]

    @cached_property
    def answering(self) -> list[int]:
        """Images that have regions and labels: only they add to the loss."""
        return [i for i in range(self.num_images) if self.num_boxes[i] and self.labels[i]]

    @cached_property
    def distinct_labels(self) -> list[int]:
        """All classes that occur in answering images, ascending."""
        return sorted({label for image in self.answering for label in self.labels[image]})

    def select_per_image(self, rows_M: Tensor) -> Selection:
        """One region for all labels of an image.

        Args:
            rows_M: the region of each answering image, in order.
        """
        slots = [m for m, i in enumerate(self.answering) for _ in self.labels[i]]
        label_P, slot_P = self._indices([self._pair_labels, slots])
        return Selection(rows_M, slot_P, label_P, self._pair_weights)

    def select_per_pair(self, rows_P: Tensor) -> Selection:
        """One region for every pair, in order of :meth:`pair_regions`."""
        (label_P,) = self._indices([self._pair_labels])
        slot_P = torch.arange(label_P.numel(), device=label_P.device)
        return Selection(rows_P, slot_P, label_P, self._pair_weights)

    def image_regions(self, *, skip_last: bool = False) -> tuple[Tensor, Tensor]:
        """Regions of the answering images as a table.

        Args:
            skip_last: leave out an image's last region, unless it is the only one.

        Returns:
            ``rows_MN`` int64 region numbers, padded with the image's last valid one, and
            ``valid_MN`` bool.
        """
        counts = [self.num_boxes[i] for i in self.answering]
        return self._table(
            [self.first_rows[i] for i in self.answering],
            [max(n - 1, 1) for n in counts] if skip_last else counts,
        )

    def pair_regions(self) -> tuple[Tensor, Tensor]:
        """The table of :meth:`image_regions` with one row per pair: ``rows_PN``, ``valid_PN``."""
        return self._table(
            [self.first_rows[i] for i in self._pair_images],
            [self.num_boxes[i] for i in self._pair_images],
        )

    def _table(self, firsts: list[int], counts: list[int]) -> tuple[Tensor, Tensor]:
        first, count = self._indices([firsts, counts])
        place_N = torch.arange(max(counts, default=1), device=first.device)
        valid = place_N[None, :] < count[:, None]
        return first[:, None] + torch.minimum(place_N[None, :], count[:, None] - 1), valid

    @cached_property
    def _pair_images(self) -> list[int]:
        return [i for i in self.answering for _ in self.labels[i]]

    @cached_property
    def _pair_labels(self) -> list[int]:
        return [label for i in self.answering for label in self.labels[i]]

    @cached_property
    def _pair_weights(self) -> Tensor:
        weights = [1.0 / (self.num_images * len(self.labels[i])) for i in self._pair_images]
        return host_to_device(torch.tensor(weights, dtype=torch.float64), self.boxes_R4.device)

    def _indices(self, lists: list[list[int]]) -> Tensor:
        """Equally long lists of integers as rows of one tensor on the regions' device."""
        table = torch.tensor(lists, dtype=torch.int64)
        return host_to_device(table, self.boxes_R4.device)


def host_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device`` that the host does not wait for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
