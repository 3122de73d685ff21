"""Embeddings of boxes: what the model is shown of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from soco_ext.data.view_options import ViewOptions
from soco_ext.evaluation.neighbours import embed_pictures
from tests.soco_ext.scenes import scene


class Looking(nn.Module):
    """Remembers the pictures it is shown."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, ...]] = []

    def embed_boxes(self, views: Tensor, boxes: Tensor, levels: Tensor) -> Tensor:
        self.shown.append(tuple(views.shape))
        return torch.ones(1, boxes.shape[1], 2)


@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 24), ({"views": ("whole:40", "crop:16")}, 40)],
    ids=["a plan's", "of VIEWS"],
)
def test_pictures_have_the_size_of_the_first_view(changes: dict[str, Any], side: int) -> None:
    model = Looking()
    boxes_K4 = np.array([[0, 0, 30, 30], [10, 5, 50, 40]])
    vectors_RC, owners_R = embed_pictures(
        model, [(scene(), boxes_K4)], ViewOptions(image_size=24, **changes)
    )
    assert model.shown == [(1, 3, side, side)]
    assert vectors_RC.shape == (2, 2)
    assert owners_R.tolist() == [0, 0]
