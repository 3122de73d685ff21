"""From two dataset dicts to one training sample: both jittered, objects of one pasted.

Shape suffixes: H, W rows and columns; O objects; N dataset items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from numpy.typing import NDArray

from ext_common.errors import ConfigError
from frozen_backbone_ext.data.paste import PasteRule, Scene, paste, select_objects

Sample = dict[str, Any]


class CopyPasteMapper:
    """Maps a record, and pastes objects of another record that is drawn like the first.

    Random numbers come from NumPy's global generator, which the loader seeds for every sample, so
    that a sample is the same in any worker and after resuming.

    Args:
        mapper: gives ``image`` of a fixed size and ``instances`` with bit masks.
        records: to draw the source from.
        factors_N: how often the sampler shows each record; None = all alike.
        rule: what becomes of covered objects.
        prob: chance that anything is pasted.
        max_objects: most objects that are pasted; 0 = no limit.
        keep_masks: whether the model takes masks.
        max_instances: objects of the sample after the first so many are left out; 0 = no limit.
    """

    def __init__(
        self,
        mapper: Any,
        records: Sequence[Mapping[str, Any]],
        *,
        factors_N: NDArray[np.floating] | None = None,
        rule: PasteRule | None = None,
        prob: float = 1.0,
        max_objects: int = 0,
        keep_masks: bool = True,
        max_instances: int = 0,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f"{prob} is no probability", where="INPUT.COPY_PASTE.PROB")
        self.mapper = mapper
        self.records = records
        self.rule = rule or PasteRule()
        self.prob = prob
        self.max_objects = max_objects
        self.keep_masks = keep_masks
        self.max_instances = max_instances
        self._upto_N = None if factors_N is None else np.cumsum(factors_N)

    def __call__(self, record: Mapping[str, Any]) -> Sample:
        """The sample of a record; its objects are those that can be seen after pasting.

        Raises:
            ImageError, DatasetError: one of the two pictures cannot be used.
        """
        sample: Sample = self.mapper(record)
        # drawn every time, so that a record's own jitter does not depend on the options
        wanted, place = np.random.random(2)  # noqa: NPY002 - seeded per sample
        if wanted < self.prob:
            source: Sample = self.mapper(self.records[self._index(float(place))])
            self._paste(sample, source)
        if self.max_instances:
            sample["instances"] = sample["instances"][: self.max_instances]
        if not self.keep_masks:
            sample["instances"].remove("gt_masks")
        return sample

    def _index(self, place: float) -> int:
        if self._upto_N is None:
            return min(int(place * len(self.records)), len(self.records) - 1)
        found = int(np.searchsorted(self._upto_N, place * self._upto_N[-1], side="right"))
        return min(found, len(self.records) - 1)

    def _paste(self, sample: Sample, source: Sample) -> None:
        selected = select_objects(len(source["instances"]), most=self.max_objects)
        pasted = paste(_scene(sample), _scene(source), selected, self.rule).scene
        image_HWC = np.ascontiguousarray(pasted.image_HWC)
        sample["image"] = torch.from_numpy(image_HWC).permute(2, 0, 1).contiguous()
        instances = Instances(image_HWC.shape[:2])
        instances.gt_boxes = Boxes(torch.from_numpy(pasted.boxes_O4).float())
        instances.gt_classes = torch.from_numpy(pasted.labels_O)
        instances.gt_masks = BitMasks(torch.from_numpy(pasted.masks_OHW))
        sample["instances"] = instances[instances.gt_boxes.nonempty()]


def _scene(sample: Sample) -> Scene:
    instances = sample["instances"]
    return Scene(
        sample["image"].permute(1, 2, 0).numpy(),
        instances.gt_masks.tensor.numpy(),
        instances.gt_boxes.tensor.numpy(),
        instances.gt_classes.numpy(),
    )
