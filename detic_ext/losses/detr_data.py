"""What a DETR predicts and what it should have: the input of its losses.

Shapes: K decoder layers, B images, Q queries, T encoder tokens, C classes (no background column),
N annotated boxes of all images, image after image. Boxes of DETR are (centre x, centre y, width,
height) as shares of the image, 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class EncoderPredictions:
    """Class-agnostic predictions of every encoder token (two-stage models).

    Attributes:
        logits_BT: whether the token shows an object.
        boxes_BT4: its box.
        usable_BT: bool; False on padding and where the token's first box leaves the image.
    """

    logits_BT: Tensor
    boxes_BT4: Tensor
    usable_BT: Tensor


@dataclass(frozen=True)
class DetrPredictions:
    """Predictions of the decoder layers, the last layer last.

    Attributes:
        logits_KBQC: one binary question per class.
        boxes_KBQ4: boxes.
        encoder: predictions of the first stage; None in one-stage models.
    """

    logits_KBQC: Tensor
    boxes_KBQ4: Tensor
    encoder: EncoderPredictions | None = None

    def last_layer(self) -> DetrPredictions:
        """The same without the layers before the last (DEEP_SUPERVISION False)."""
        return replace(self, logits_KBQC=self.logits_KBQC[-1:], boxes_KBQ4=self.boxes_KBQ4[-1:])


@dataclass(frozen=True)
class DetrTargets:
    """Annotations of a batch. Counts live on the host, so nothing has to wait for them.

    Attributes:
        labels_N: int64, 0..C-1.
        boxes_N4: float32 boxes with positive sides.
        counts: boxes of each image; their sum is N.
        num_distinct: how many different labels occur.
    """

    labels_N: Tensor
    boxes_N4: Tensor
    counts: tuple[int, ...]
    num_distinct: int

    def boxes_of_images(self) -> tuple[Tensor, ...]:
        """The boxes of each image."""
        return self.boxes_N4.split(list(self.counts))

    def labels_of_images(self) -> tuple[Tensor, ...]:
        """The labels of each image."""
        return self.labels_N.split(list(self.counts))
