"""How networks that are not trained are run and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.structures import Boxes
from torch import Tensor


@contextmanager
def frozen_pass(device: torch.device, *, bfloat16: bool) -> Iterator[None]:
    """Inference mode, and bfloat16 where asked; otherwise the precision around it.

    What is made inside cannot take part in a backward pass before it is copied (:func:`copied`,
    :func:`copied_boxes`).
    """
    with torch.inference_mode():
        if bfloat16:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                yield
        else:
            yield


def copied(tensor: Tensor) -> Tensor:
    """An ordinary tensor with the same content."""
    return tensor.clone() if tensor.is_inference() else tensor


def copied_boxes(boxes: Boxes) -> Boxes:
    """The same for boxes, in single precision."""
    return Boxes(copied(boxes.tensor).float())
