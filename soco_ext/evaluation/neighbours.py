"""Object embeddings of pictures, and which objects of other pictures are most like one.

Shapes: K boxes of a picture, R boxes of all pictures, C width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from soco_ext.data.box_pairs import LevelRule, view_boxes
from soco_ext.data.boxes import with_ids
from soco_ext.data.colour import to_array
from soco_ext.data.crops import resized_crop, whole_image
from soco_ext.data.view_options import ViewOptions

Picture = tuple[NDArray[np.uint8], NDArray[np.number]]
"""RGB pixels [H, W, 3] and boxes [K, 4] x1, y1, x2, y2, the last pixel inside; K of 1 or more."""


def embed_pictures(
    model: Any, pictures: Iterable[Picture], options: ViewOptions
) -> tuple[Tensor, NDArray[np.int64]]:
    """Embeddings of all boxes as view 1 shows them, without changes of colour.

    Args:
        model: with ``embed_boxes``; is in evaluation mode afterwards.
        pictures: one by one.
        options: size of view 1, and the rule of the levels.

    Returns:
        [R, C] on the CPU, of length 1, and the number of each box's picture [R].
    """
    model.eval()
    rule = LevelRule(options.aware_range, options.aware_start, options.aware_end)
    size = options.view_plan().views[0].size
    vectors, owners = [], []
    for number, (image_HW3, boxes_K4) in enumerate(pictures):
        crop = whole_image((image_HW3.shape[0], image_HW3.shape[1]))
        boxes = view_boxes(with_ids(boxes_K4), crop, size, mirrored=False, rule=rule)
        view = to_array(resized_crop(Image.fromarray(image_HW3), crop, size))
        found_1KC = model.embed_boxes(
            torch.from_numpy(view)[None].to(model.device),
            torch.from_numpy(boxes.shares_K5)[None].to(model.device),
            torch.from_numpy(boxes.levels_K)[None],
        )
        vectors.append(found_1KC[0].cpu())
        owners.append(np.full(len(boxes_K4), number))
    return torch.cat(vectors), np.concatenate(owners)


def nearest_of_others(
    vectors_RC: Tensor, owners_R: NDArray[np.int64], query: int, count: int
) -> list[tuple[int, float]]:
    """The boxes most like box ``query``, at most one of every other picture.

    Args:
        vectors_RC: of length 1.
        owners_R: picture of each box.
        query: number of a box.
        count: at most so many; fewer where there are fewer other pictures.

    Returns:
        Numbers of boxes and their cosine similarities, the most similar first.
    """
    similarity_R = vectors_RC @ vectors_RC[query]
    seen = {int(owners_R[query])}
    found: list[tuple[int, float]] = []
    for box in similarity_R.argsort(descending=True, stable=True).tolist():
        owner = int(owners_R[box])
        if owner not in seen and len(found) < count:
            seen.add(owner)
            found.append((box, float(similarity_R[box])))
    return found
