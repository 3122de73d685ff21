"""Training and test augmentations: large-scale jitter, and the list that a config asks for.

Shape suffixes: H, W image rows and columns; C channels; N points; boxes are [R, 4] XYXY in absolute
pixels. Random numbers come from NumPy's global generator, as in detectron2, which seeds it in every
loader worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image
from torch.nn import functional as F

from ext_common.errors import ConfigError, ImageError
from ext_common.resize import ResizeShortestEdge

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
DETR_SHORT_EDGES = tuple(range(480, 801, 32))
"""Short edges of the DETR recipe, used where the config gives only one."""
DETR_CROP_SHORT_EDGES = (400, 500, 600)
DETR_CROP_LONGEST = 6000
"""The recipe has no limit here: a line of 1 x 5000 pixels would grow to 3.75 GB."""
DETR_CROP_RANGE = (384, 600)


class EfficientDetResizeCropTransform(Transform):
    """Scale an image by one factor and cut a window of at most ``target_size`` pixels a side.

    Nothing is padded: batching does that. Coordinates use the exact factor while the image has
    whole pixels, so the two differ by less than one pixel (detic spec 6.3).

    Args:
        scaled_h: rows of the scaled image.
        scaled_w: columns of the scaled image.
        offset_y: first row of the window in the scaled image.
        offset_x: first column of the window.
        img_scale: scaled length / original length.
        target_size: rows and columns of the window; the image may end before.
        interp: how images (not segmentations) are resampled, a PIL constant.
    """

    def __init__(
        self,
        scaled_h: int,
        scaled_w: int,
        offset_y: int,
        offset_x: int,
        img_scale: float,
        target_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        super().__init__()
        self.scaled_h = scaled_h
        self.scaled_w = scaled_w
        self.offset_y = offset_y
        self.offset_x = offset_x
        self.img_scale = img_scale
        self.target_size = target_size
        self.interp = interp

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Scale and cut an image [H, W] or [H, W, C]: uint8 through PIL, floats through torch.

        Raises:
            ImageError: another dtype.
        """
        if img.dtype == np.uint8:
            scaled = self._resize_uint8(img)
        elif np.issubdtype(img.dtype, np.floating):
            scaled = self._resize_float(img)
        else:
            raise ImageError(
                f"cannot resample pixels of type {img.dtype}",
                fix="uint8 and floating point work; label maps go through apply_segmentation",
            )
        return scaled[self._window()]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Nearest pixel of a label map [H, W] of any dtype."""
        rows = _nearest_sources(segmentation.shape[0], self.scaled_h)
        columns = _nearest_sources(segmentation.shape[1], self.scaled_w)
        in_rows, in_columns = self._window()
        return segmentation[rows[in_rows]][:, columns[in_columns]]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points [N, 2] (x, y) of the original image in the window; the argument stays as it is."""
        return np.asarray(coords) * self.img_scale - self._offset(coords)

    def inverse(self) -> Transform:
        """Points and boxes back to the original image. Pixels outside the window are lost."""
        return _InverseResizeCrop(self.img_scale, self._offset(np.zeros(0)))

    def _offset(self, like: np.ndarray) -> np.ndarray:
        dtype = like.dtype if np.issubdtype(like.dtype, np.floating) else np.float64
        return np.asarray([self.offset_x, self.offset_y], dtype=dtype)

    def _window(self) -> tuple[slice, slice]:
        """Rows and columns of the scaled image that stay."""
        height, width = self.target_size
        return (
            slice(self.offset_y, self.offset_y + height),
            slice(self.offset_x, self.offset_x + width),
        )

    def _resize_uint8(self, img: np.ndarray) -> np.ndarray:
        if img.ndim == 2 or img.shape[2] == 3:
            size = (self.scaled_w, self.scaled_h)
            return np.asarray(Image.fromarray(img).resize(size, Image.Resampling(self.interp)))
        # PIL would take a second or fourth channel for transparency
        channels = [self._resize_uint8(img[:, :, c]) for c in range(img.shape[2])]
        return np.stack(channels, axis=2)

    def _resize_float(self, img: np.ndarray) -> np.ndarray:
        mode = _TORCH_MODES[Image.Resampling(self.interp)]
        img_HWC = np.ascontiguousarray(img if img.ndim == 3 else img[:, :, None])
        img_1CHW = torch.from_numpy(img_HWC).permute(2, 0, 1)[None]
        scaled_1CHW = F.interpolate(
            img_1CHW,
            (self.scaled_h, self.scaled_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        scaled_HWC = scaled_1CHW[0].permute(1, 2, 0).numpy()
        return scaled_HWC if img.ndim == 3 else scaled_HWC[:, :, 0]


class _InverseResizeCrop(Transform):
    """Coordinates of the window back in the original image."""

    def __init__(self, img_scale: float, offset: np.ndarray) -> None:
        super().__init__()
        self.img_scale = img_scale
        self.offset = offset

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        raise NotImplementedError("the cut-off part of the image cannot be brought back")

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords)
        return (coords + self.offset.astype(coords.dtype)) / self.img_scale


def _nearest_sources(length: int, scaled: int) -> np.ndarray:
    """For every pixel of a scaled line the index of its source, chosen as PIL does."""
    indices = Image.fromarray(np.arange(length, dtype=np.int32)[None, :])
    return np.asarray(indices.resize((scaled, 1), Image.Resampling.NEAREST))[0]


class EfficientDetResizeCrop(T.Augmentation):
    """Large-scale jitter: fit the image into a randomly scaled square, cut a random window of it.

    Detic spec 6.3. Three numbers are always drawn, in this order: the scale, the vertical and the
    horizontal place of the window.

    Args:
        size: side T of the square window in pixels.
        scale: (lowest, highest) factor of T that the image is fitted to.
        interp: how images are resampled, a PIL constant.

    Raises:
        ConfigError: a size or scale that is not positive, or a range upside down.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"EfficientDetResizeCrop size {size} is not a positive side")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(
                f"EfficientDetResizeCrop scale range {tuple(scale)} is not 0 < lowest <= highest"
            )
        self.size = size
        self.scale = (float(scale[0]), float(scale[1]))
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> EfficientDetResizeCropTransform:
        """Draw a transform for an image [H, W] or [H, W, C]."""
        fitted = float(self._rand_range(*self.scale)) * self.size
        place_y, place_x = float(self._rand_range()), float(self._rand_range())
        height, width = image.shape[:2]
        img_scale = min(fitted / height, fitted / width)
        # a thin image scaled down may round to no pixel at all
        scaled_h = max(int(height * img_scale), 1)
        scaled_w = max(int(width * img_scale), 1)
        return EfficientDetResizeCropTransform(
            scaled_h=scaled_h,
            scaled_w=scaled_w,
            offset_y=math.floor(max(0, scaled_h - self.size) * place_y),
            offset_x=math.floor(max(0, scaled_w - self.size) * place_x),
            img_scale=img_scale,
            target_size=(self.size, self.size),
            interp=self.interp,
        )


def build_augmentations(
    cfg: CfgNode,
    is_train: bool,
    *,
    size: int | None = None,
    scale: tuple[float, float] | None = None,
    min_size: Sequence[int] | None = None,
    max_size: int | None = None,
) -> list[T.Augmentation]:
    """The augmentations of ``INPUT.CUSTOM_AUG`` (training) or ``INPUT.TEST_INPUT_TYPE`` (test).

    Training lists end with the flip of ``INPUT.RANDOM_FLIP`` (detic spec 6.2).

    Args:
        cfg: keys under ``INPUT``.
        is_train: training or test.
        size: square side instead of ``TRAIN_SIZE`` / ``TEST_SIZE`` (datasets may have their own).
        scale: jitter range instead of ``SCALE_RANGE``; training only.
        min_size: short edges instead of ``MIN_SIZE_TRAIN`` / ``MIN_SIZE_TEST``.
        max_size: longest side instead of ``MAX_SIZE_TRAIN`` / ``MAX_SIZE_TEST``.

    Raises:
        ConfigError: an unknown name (the choices are listed) or an impossible value.
    """
    options = cfg.INPUT
    if not is_train:
        shortest = ResizeShortestEdge(
            min_size if min_size is not None else options.MIN_SIZE_TEST,
            max_size if max_size is not None else options.MAX_SIZE_TEST,
            "choice",
        )
        side = size if size is not None else options.TEST_SIZE
        tests: dict[str, Callable[[], list[T.Augmentation]]] = {
            "default": lambda: [shortest],
            "square": lambda: [EfficientDetResizeCrop(side, (1.0, 1.0))],
        }
        return _choose("INPUT.TEST_INPUT_TYPE", options.TEST_INPUT_TYPE, tests)

    short_edges = tuple(min_size if min_size is not None else options.MIN_SIZE_TRAIN)
    longest = max_size if max_size is not None else options.MAX_SIZE_TRAIN
    side = size if size is not None else options.TRAIN_SIZE
    scale_range = scale if scale is not None else options.SCALE_RANGE
    trains: dict[str, Callable[[], list[T.Augmentation]]] = {
        "": lambda: [*_crop_first(cfg), _resize_shortest_edge(cfg, short_edges, longest)],
        "EfficientDetResizeCrop": lambda: [EfficientDetResizeCrop(side, scale_range)],
        "ResizeShortestEdge": lambda: [_resize_shortest_edge(cfg, short_edges, longest)],
        "DETR": lambda: _detr(short_edges, longest),
    }
    return [*_choose("INPUT.CUSTOM_AUG", options.CUSTOM_AUG, trains), *_flip(cfg)]


def _choose(
    key: str, name: str, choices: dict[str, Callable[[], list[T.Augmentation]]]
) -> list[T.Augmentation]:
    if name not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"unknown value {name!r}", where=key, fix=f"one of {known}")
    return choices[name]()


def _resize_shortest_edge(
    cfg: CfgNode, short_edges: tuple[int, ...], longest: int
) -> T.Augmentation:
    style = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if style == "range" and len(short_edges) != 2:
        raise ConfigError(
            f"{len(short_edges)} short edges {short_edges} for sampling from a range",
            where="INPUT.MIN_SIZE_TRAIN_SAMPLING",
            fix="give the lowest and the highest, or sample by 'choice'",
        )
    return ResizeShortestEdge(short_edges, longest, style)


def _crop_first(cfg: CfgNode) -> list[T.Augmentation]:
    crop = cfg.INPUT.CROP
    return [T.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else []


def _detr(short_edges: tuple[int, ...], longest: int) -> list[T.Augmentation]:
    """DETR's recipe: half of the images are cut before they are resized."""
    cut = T.AugmentationList(
        [
            ResizeShortestEdge(DETR_CROP_SHORT_EDGES, DETR_CROP_LONGEST, "choice"),
            T.RandomCrop("absolute_range", DETR_CROP_RANGE),
        ]
    )
    edges = short_edges if len(short_edges) > 1 else DETR_SHORT_EDGES
    return [T.RandomApply(cut, prob=0.5), ResizeShortestEdge(edges, longest, "choice")]


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    direction = cfg.INPUT.RANDOM_FLIP
    choices: dict[str, Callable[[], list[T.Augmentation]]] = {
        "none": list,
        "horizontal": lambda: [T.RandomFlip(horizontal=True, vertical=False)],
        "vertical": lambda: [T.RandomFlip(horizontal=False, vertical=True)],
    }
    return _choose("INPUT.RANDOM_FLIP", direction, choices)
