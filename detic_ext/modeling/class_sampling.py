"""The classes of one step for very large vocabularies (DYNAMIC_CLASSIFIER, specification section 5).

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detic_ext.losses.dynamic_classes import ClassSubset, sample_class_subset
from detic_ext.modeling.supervision import Supervision
from ext_common.errors import ConfigError, DatasetError


class ClassSampler:
    """Draws the classes that a step's classifier knows: those annotated, and random others.

    All of it happens on the host, where the annotations are, so nothing waits for the device.

    Args:
        size: classes per step (NUM_SAMPLE_CATS).
        num_classes: C.
        freq_weight_C: drawing weights of box batches; classes that the frequency file does not
            know have 0. None where they are not known: then there can be no box batches.
    """

    def __init__(self, size: int, num_classes: int, freq_weight_C: Tensor | None = None) -> None:
        self.size = size
        self.num_classes = num_classes
        self.freq_weight_C = None if freq_weight_C is None else freq_weight_C.cpu()

    def __call__(
        self, supervision: Supervision, batched_inputs: Sequence[dict[str, Any]]
    ) -> ClassSubset | None:
        """The subset for a batch; None for batches that teach no classes.

        Raises:
            ConfigError: a box batch and no frequencies.
            DatasetError: an annotated class that the model does not have.
        """
        if supervision.ann_type == "box":
            if self.freq_weight_C is None:
                raise ConfigError(
                    "the classes of a step are drawn by frequency; there is no such file, and the "
                    "training data say nothing of frequencies",
                    where="MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH",
                    fix="give the file, or set MODEL.DYNAMIC_CLASSIFIER False",
                )
            present = torch.cat([item["instances"].gt_classes for item in batched_inputs]).tolist()
            return self._draw(present, self.freq_weight_C)
        if supervision.has_labels:
            return self._draw([label for image in supervision.labels for label in image], None)
        return None

    def _draw(self, present: Sequence[int], weight_C: Tensor | None) -> ClassSubset:
        wrong = [label for label in present if not 0 <= label < self.num_classes]
        if wrong:
            raise DatasetError(
                f"label {wrong[0]} in the batch, the classifier has {self.num_classes} classes",
                fix="check MODEL.ROI_HEADS.NUM_CLASSES and the data set's categories",
            )
        return sample_class_subset(present, self.size, self.num_classes, weight_C=weight_C)
