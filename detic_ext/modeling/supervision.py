"""What one batch is supervised with: boxes, image labels or captions.

Shapes: B images of this process, N captions of all processes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detic_ext.losses.dynamic_classes import ClassSubset
from ext_common.errors import DatasetError

ANN_TYPES = ("box", "image", "caption", "captiontag", "prop", "proptag")
CAPTION_TYPES = ("caption", "captiontag")
PROPOSAL_TYPES = ("prop", "proptag")
_WITH_BOXES = frozenset({"box", *PROPOSAL_TYPES})


@dataclass(frozen=True)
class CaptionFeatures:
    """Text features that the images of a batch are compared with.

    Args:
        features_ND: float32, un-normalised, without gradient; rows of zeros stand for processes
            without captions.
        first_own_row: row of this process's first caption; image i owns the i-th after it.
    """

    features_ND: Tensor
    first_own_row: int = 0


@dataclass(frozen=True)
class Supervision:
    """Kind of annotation of a batch, the same for all of its images (specification section 5).

    Args:
        ann_type: ``box`` = boxes with classes; ``image`` = image labels; ``caption`` and
            ``captiontag`` = captions without and with image labels; ``prop`` and ``proptag`` = boxes
            that teach the proposal generator alone.
        labels: per image the ids of the classes that it shows, 0-based.
        captions: what caption batches learn from.
        subset: the classes of this step (DYNAMIC_CLASSIFIER); None = all.
    """

    ann_type: str = "box"
    labels: tuple[tuple[int, ...], ...] = ()
    captions: CaptionFeatures | None = None
    subset: ClassSubset | None = None

    @property
    def has_boxes(self) -> bool:
        """Whether the proposal generator learns from this batch."""
        return self.ann_type in _WITH_BOXES

    @property
    def has_captions(self) -> bool:
        """Whether every image has captions."""
        return self.ann_type in CAPTION_TYPES

    @property
    def has_labels(self) -> bool:
        """Whether regions of images without boxes learn classes."""
        return self.ann_type in ("image", "captiontag")

    @classmethod
    def from_batch(cls, batched_inputs: Sequence[dict[str, Any]]) -> Supervision:
        """Read the supervision of a batch from its ``ann_type`` and ``pos_category_ids``.

        Raises:
            DatasetError: an unknown kind, or two kinds in one batch.
        """
        kinds = {str(item.get("ann_type", "box")) for item in batched_inputs}
        if len(kinds) != 1:
            raise DatasetError(
                f"one batch holds annotations of several kinds: {', '.join(sorted(kinds))}",
                fix="set DATALOADER.MULTI_DATASET_GROUPING True",
            )
        kind = kinds.pop()
        if kind not in ANN_TYPES:
            raise DatasetError(
                f"unknown ann_type {kind!r}", fix=f"one of {', '.join(ANN_TYPES)} in DATASET_ANN"
            )
        labels = tuple(
            tuple(int(label) for label in item.get("pos_category_ids", ()))
            for item in batched_inputs
        )
        return cls(ann_type=kind, labels=labels)
