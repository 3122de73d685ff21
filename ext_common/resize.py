"""detectron2's resizing, for pictures of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's augmentation, with a result of at least one pixel a side.

    Scaled to the limit of its longer side, a line of one pixel would round to none.
    """

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """The transform of an image, [H, W, C]."""
        found = super().get_transform(image)
        if isinstance(found, T.ResizeTransform) and not min(found.new_h, found.new_w):
            height, width = image.shape[:2]
            size = np.maximum((found.new_h, found.new_w), 1).tolist()
            return T.ResizeTransform(height, width, *size, self.interp)
        return found
