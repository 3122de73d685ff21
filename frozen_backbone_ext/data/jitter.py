"""Large-scale jitter onto a canvas of fixed size (spec 3; geometry as detectron2's).

Shape suffixes: H, W rows and columns, C channels. Random numbers come from NumPy's global
generator, which the loaders seed per sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, Transform
from numpy.typing import NDArray
from PIL import Image

from ext_common.errors import ConfigError


class Window(CropTransform):
    """Cuts pictures and masks; polygons keep what lies outside, which drawing them leaves out.

    fvcore would cut the polygons too, with a package that need not be there.
    """

    def apply_polygons(self, polygons: list[NDArray[np.floating]]) -> list[NDArray[np.floating]]:
        """Polygons in the window's coordinates."""
        return [self.apply_coords(polygon) for polygon in polygons]


class PadToCanvas(Transform):
    """Pad right and bottom with one colour; masks are padded with 0.

    Args:
        height, width: of the canvas, at least those of the image.
        colour: one value, or one per channel.
    """

    def __init__(self, height: int, width: int, colour: float | Sequence[float] = 128.0) -> None:
        super().__init__()
        self.height = height
        self.width = width
        self.colour = colour

    def apply_image(self, img: NDArray[np.generic]) -> NDArray[np.generic]:
        """A canvas with the image [H, W, C] in its top left corner."""
        colour = np.asarray(self.colour, dtype=np.float64)
        if np.issubdtype(img.dtype, np.integer):
            colour = np.rint(colour)
        shape = (self.height, self.width, *img.shape[2:])
        canvas: NDArray[np.generic] = np.empty(shape, dtype=img.dtype)
        canvas[...] = colour.astype(img.dtype)
        canvas[: img.shape[0], : img.shape[1]] = img
        return canvas

    def apply_segmentation(self, segmentation: NDArray[np.generic]) -> NDArray[np.generic]:
        """A canvas of zeros with the mask in its corner."""
        missing = [self.height - segmentation.shape[0], self.width - segmentation.shape[1]]
        return np.pad(segmentation, [(0, missing[0]), (0, missing[1])])

    def apply_coords(self, coords: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points stay where they are."""
        return coords


def jitter_transforms(
    image_hw: tuple[int, int],
    size: int,
    scale: float,
    offset_uniform_yx: tuple[float, float],
    *,
    flip: bool,
    pad_colour: float | Sequence[float] = 128.0,
) -> T.TransformList:
    """The transforms of one draw: resize, cut, pad, flip.

    Args:
        image_hw: height and width of the picture.
        size: side of the canvas.
        scale: the picture is fitted into a square of ``scale * size``.
        offset_uniform_yx: place of the window in what exceeds the canvas, 0..1 each.
        flip: mirror left and right.
        pad_colour: of the canvas.
    """
    height, width = image_hw
    factor = min(size * scale / height, size * scale / width)
    resized_h, resized_w = (max(int(np.round(side * factor)), 1) for side in image_hw)
    top, left = (
        int(np.round(max(side - size, 0) * uniform))
        for side, uniform in zip((resized_h, resized_w), offset_uniform_yx, strict=True)
    )
    cut_h, cut_w = min(resized_h, size), min(resized_w, size)
    steps: list[Transform] = [
        T.ResizeTransform(height, width, resized_h, resized_w, Image.Resampling.BILINEAR),
        Window(left, top, cut_w, cut_h, resized_w, resized_h),
        PadToCanvas(size, size, pad_colour),
        HFlipTransform(size) if flip else NoOpTransform(),
    ]
    return T.TransformList(steps)


class LargeScaleJitter(T.Augmentation):
    """Draws a scale, a window and a flip for every picture.

    Args:
        size: side of the square canvas in pixels.
        scale: (lowest, highest) factor of ``size``.
        flip: chance of a horizontal flip.
        pad_colour: one value, or one per channel in the picture's channel order; the pixel mean
            makes padding neutral after normalisation.

    Raises:
        ConfigError: a size or scale that cannot be.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.1, 2.0),
        *,
        flip: float = 0.5,
        pad_colour: float | Sequence[float] = 128.0,
    ) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(
                f"large-scale jitter of size {size} with scales {tuple(scale)}",
                where="INPUT.TRAIN_SIZE, INPUT.SCALE_RANGE",
                fix="a positive side, and 0 < lowest <= highest",
            )
        self.size = size
        self.scale = (float(scale[0]), float(scale[1]))
        self.flip = flip
        self.pad_colour = pad_colour

    def get_transform(self, image: NDArray[np.generic]) -> T.TransformList:
        """Draw for an image [H, W, C]; four numbers are drawn every time."""
        scale = float(self._rand_range(*self.scale))
        place = (float(self._rand_range()), float(self._rand_range()))
        flip = float(self._rand_range()) < self.flip
        return jitter_transforms(
            (image.shape[0], image.shape[1]),
            self.size,
            scale,
            place,
            flip=flip,
            pad_colour=self.pad_colour,
        )
