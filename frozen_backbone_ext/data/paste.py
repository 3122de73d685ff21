"""Copy-Paste of objects from one picture into another of the same size (spec 3).

Shape suffixes: H, W rows and columns; O objects; boxes are [O, 4] XYXY in pixels, of which the
second corner is one beyond the last pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError

BOX_RULES = ("mask", "coord")
BLENDS = ("none", "gaussian")


@dataclass(frozen=True)
class PasteRule:
    """What becomes of objects that are covered.

    Args:
        box_rule: ``mask`` takes all boxes from the remaining masks (mmdetection), ``coord`` changes
            only the coordinates that moved by more than ``box_threshold`` (the TPU recipe).
        box_threshold: pixels; an object is occluded when a coordinate of its mask's box moved more.
        area_threshold: an occluded object with at most this many pixels left is removed.
        blend: ``none``, or ``gaussian`` to smooth the edges of what is pasted.

    Raises:
        ConfigError: an unknown rule.
    """

    box_rule: str = "mask"
    box_threshold: float = 10.0
    area_threshold: float = 300.0
    blend: str = "none"

    def __post_init__(self) -> None:
        for name, choices in (("box_rule", BOX_RULES), ("blend", BLENDS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{getattr(self, name)!r} is not known",
                    where=f"INPUT.COPY_PASTE.{name.upper()}",
                    fix=f"one of {', '.join(choices)}",
                )


@dataclass(frozen=True)
class Scene:
    """A picture with its objects.

    Args:
        image_HWC: uint8 or float.
        masks_OHW: bool.
        boxes_O4: XYXY, float.
        labels_O: class ids.
    """

    image_HWC: NDArray[np.generic]
    masks_OHW: NDArray[np.bool_]
    boxes_O4: NDArray[np.floating]
    labels_O: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.labels_O)

    def chosen(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> Scene:
        """The same picture with some of its objects."""
        return Scene(
            self.image_HWC, self.masks_OHW[index], self.boxes_O4[index], self.labels_O[index]
        )


@dataclass(frozen=True)
class Pasted:
    """Result of :func:`paste`.

    Args:
        scene: kept objects of the destination first, then the pasted ones.
        keep_O: which of the destination's objects were kept.
        union_HW: pixels that come from the source.
    """

    scene: Scene
    keep_O: NDArray[np.bool_]
    union_HW: NDArray[np.bool_]


def paste(
    destination: Scene,
    source: Scene,
    selected: NDArray[np.integer],
    rule: PasteRule | None = None,
) -> Pasted:
    """Paste the selected objects of ``source`` into ``destination``.

    Objects without a pixel left are removed whatever the thresholds say. Without a selected object
    the destination comes back as it is.

    Args:
        destination, source: of the same height and width.
        selected: indices of the source's objects.
        rule: see there.

    Raises:
        ConfigError: pictures of different size.
    """
    rule = rule or PasteRule()
    if destination.image_HWC.shape != source.image_HWC.shape:
        raise ConfigError(
            f"a picture of {source.image_HWC.shape} pasted into {destination.image_HWC.shape}",
            fix="both need the same canvas (large-scale jitter with a fixed size)",
        )
    shape_HW = destination.image_HWC.shape[:2]
    if not len(selected):
        everything_O = np.ones(len(destination), dtype=bool)
        return Pasted(destination, everything_O, np.zeros(shape_HW, dtype=bool))
    added = source.chosen(selected)
    union_HW = np.asarray(added.masks_OHW.any(axis=0))
    masks_OHW = destination.masks_OHW & ~union_HW
    after_O4 = mask_boxes(masks_OHW)
    moved_O4 = np.abs(after_O4 - destination.boxes_O4) > rule.box_threshold
    area_O = masks_OHW.sum(axis=(1, 2))
    occluded_O = moved_O4.any(axis=1)
    keep_O = ~(occluded_O & (area_O <= rule.area_threshold))
    keep_O &= area_O > 0
    boxes_O4 = after_O4
    if rule.box_rule == "coord":
        boxes_O4 = np.where(moved_O4, after_O4, destination.boxes_O4)
    kept = Scene(destination.image_HWC, masks_OHW, boxes_O4, destination.labels_O).chosen(keep_O)
    scene = Scene(
        _blended(destination.image_HWC, source.image_HWC, union_HW, rule.blend),
        np.concatenate([kept.masks_OHW, added.masks_OHW]),
        np.concatenate([kept.boxes_O4, added.boxes_O4]).astype(destination.boxes_O4.dtype),
        np.concatenate([kept.labels_O, added.labels_O]),
    )
    return Pasted(scene, keep_O, union_HW)


def mask_boxes(masks_OHW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[O, 4] tight boxes; zeros for an empty mask."""
    boxes_O4 = np.zeros((len(masks_OHW), 4))
    for axis, (first, last) in ((1, (0, 2)), (2, (1, 3))):
        line_OL = np.asarray(masks_OHW.any(axis=axis))
        length = line_OL.shape[1]
        boxes_O4[:, first] = line_OL.argmax(axis=1)
        boxes_O4[:, last] = length - line_OL[:, ::-1].argmax(axis=1)
    boxes_O4[~masks_OHW.any(axis=(1, 2))] = 0
    return boxes_O4


def select_objects(
    count: int, generator: np.random.Generator | None = None, *, most: int = 0
) -> NDArray[np.int64]:
    """Which of ``count`` objects to paste: m of them with m uniform in 0..count.

    Args:
        count: objects of the source.
        generator: None = NumPy's global one, which loaders seed per sample.
        most: upper limit of m; 0 = none.
    """
    most = min(most, count) if most else count
    if generator is None:
        number = int(np.random.randint(0, most + 1))  # noqa: NPY002 - seeded per sample
        return np.sort(np.random.permutation(count)[:number])  # noqa: NPY002
    return np.sort(generator.permutation(count)[: generator.integers(0, most + 1)])


def _blended(
    below_HWC: NDArray[np.generic],
    above_HWC: NDArray[np.generic],
    union_HW: NDArray[np.bool_],
    blend: str,
) -> NDArray[np.generic]:
    if blend == "none":
        return np.where(union_HW[:, :, None], above_HWC, below_HWC)
    import cv2

    alpha_HW1 = cv2.GaussianBlur(union_HW.astype(np.float32), (5, 5), 2.0)[:, :, None]
    mixed_HWC = above_HWC.astype(np.float32) * alpha_HW1
    mixed_HWC = mixed_HWC + below_HWC.astype(np.float32) * (1 - alpha_HW1)
    if np.issubdtype(below_HWC.dtype, np.integer):
        mixed_HWC = np.rint(mixed_HWC)
    return mixed_HWC.astype(below_HWC.dtype)
