"""Detections drawn over their picture, and contact sheets; Pillow only, no display needed.

Small pictures are enlarged before anything is drawn, so that the labels of a 160 px picture can be
read; large ones keep their size and get larger labels.

Shapes: H, W = rows and columns of the result; rgb_HW3 = uint8, RGB. Places inside the drawing code
are in pixels of the result.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ext_common.results import Detections, Rle, decode_mask

Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2

DRAWN_SIDE = 640  # smaller pictures are enlarged to this longer side
MAX_ENLARGEMENT = 4.0
_MASK_OPACITY = 0.4
_RIM: Rgb = (20, 20, 20)
_ASCENT, _DESCENT = 0.78, 0.24  # of DejaVu Sans above and below the baseline, in font sizes
_SHEET_BACKGROUND: Rgb = (250, 250, 250)
_SHEET_TEXT: Rgb = (40, 40, 40)


def class_color(class_id: int) -> Rgb:
    """The colour of a class: always the same one, and far from those of its neighbours."""
    # steps of the golden ratio never come back near a hue that was used a few classes before
    hue = (0.02 + class_id * 0.618033988749895) % 1.0
    lightness = (0.46, 0.58, 0.36)[class_id // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    rgb_HW3: NDArray[np.uint8], detections: Detections, *, drawn_side: int = DRAWN_SIDE
) -> NDArray[np.uint8]:
    """Masks, boxes, class names and scores over a picture.

    A label goes to the first free place on the border of its box, those of high scores first;
    where there is none (a crowd of small objects), the box stays without a label.

    Args:
        rgb_HW3: the picture that the detections are of.
        detections: any number; filter them by score before.
        drawn_side: a picture whose longer side is shorter is enlarged to it, at most
            :data:`MAX_ENLARGEMENT` times.

    Returns:
        uint8 [H, W, 3], RGB, of the enlarged size.
    """
    height, width = rgb_HW3.shape[:2]
    scale = min(MAX_ENLARGEMENT, max(1.0, drawn_side / max(height, width)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(rgb_HW3))
    if scale > 1:
        image = image.resize(size, Image.Resampling.BICUBIC)
    # the recorded size and the picture's agree, unless the caller resized the picture
    ratio_xy = (size[0] / detections.image_size[1], size[1] / detections.image_size[0])
    boxes = [_scaled(box, ratio_xy) for box in detections.boxes_R4.tolist()]
    colors = [class_color(int(index)) for index in detections.class_ids_R]
    # the best on top of the others, but the first to choose a place for its label
    best_last = np.argsort(detections.scores_R, kind="stable").tolist()

    if detections.masks is not None:
        image = _with_masks(image, [(detections.masks[i], colors[i]) for i in best_last])
    style = _Style.for_picture(size)
    draw = ImageDraw.Draw(image)
    for index in best_last:
        x1, y1, x2, y2 = boxes[index]
        # a dark rim keeps the line visible on a background of its own colour
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_RIM, width=style.line + 2)
        draw.rectangle((x1, y1, x2, y2), outline=colors[index], width=style.line)
    labels = _Labels(draw, style, size)
    for index in reversed(best_last):
        text = f"{detections.names[index]} {detections.scores_R[index]:.0%}"
        labels.add(text, boxes[index], colors[index])
    return np.array(image)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    columns: int = 4,
    *,
    cell: int = 360,
) -> NDArray[np.uint8]:
    """Pictures side by side, each fitted into a square cell with its caption below.

    Args:
        images: uint8 [H, W, 3] RGB pictures of any sizes, at least one.
        captions: one line each; what is too long is cut with an ellipsis.
        columns: pictures per row, at least 1.
        cell: side of a cell in pixels.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ValueError: no pictures, not one caption for each, or no columns.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ValueError(f"{len(images)} images, {len(captions)} captions, {columns} columns")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    font, gap = _font(max(12, cell // 22)), max(4, cell // 40)
    line = _text_size(font, "")[1] + gap
    # a row is as high as its highest picture, so that a row of panoramas wastes no space
    fitted = [_fitted(image, cell) for image in images]
    heights = [
        max(image.height for image in fitted[row * columns : (row + 1) * columns]) + line + gap
        for row in range(rows)
    ]
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, sum(heights) + gap), _SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(fitted, captions, strict=True)):
        row, column = divmod(index, columns)
        left = gap + column * (cell + gap)
        bottom = gap + sum(heights[: row + 1]) - line - gap
        sheet.paste(image, (left + (cell - image.width) // 2, bottom - image.height))
        text = _shortened(_one_line(caption), font, cell)
        text_width, text_height = _text_size(font, text)
        baseline = bottom + gap // 2 + text_height - _DESCENT * font.size
        place = (left + (cell - text_width) // 2, baseline)
        draw.text(place, text, _SHEET_TEXT, font, "ls")
    return np.array(sheet)


@dataclass(frozen=True)
class _Style:
    """Line width and label font for a picture's size."""

    line: int
    padding: int
    font: ImageFont.FreeTypeFont

    @classmethod
    def for_picture(cls, size: tuple[int, int]) -> _Style:
        side = math.sqrt(size[0] * size[1])
        points = round(min(48, max(13, side / 42)))
        return cls(line=max(2, round(side / 320)), padding=max(2, points // 5), font=_font(points))


@dataclass
class _Labels:
    """Places labels so that none covers another, and none leaves the picture."""

    draw: ImageDraw.ImageDraw
    style: _Style
    size: tuple[int, int]
    taken: list[Box] = field(default_factory=list)

    def add(self, text: str, box: Box, color: Rgb) -> bool:
        """Write a label; False where it found no place."""
        style = self.style
        text = _shortened(_one_line(text), style.font, self.size[0] - 2 * style.padding)
        text_width, text_height = _text_size(style.font, text)
        width, height = text_width + 2 * style.padding, text_height + 2 * style.padding
        for x, y in self._places(box, width, height):
            place = (x, y, x + width, y + height)
            if any(_overlap(place, other) for other in self.taken):
                continue
            self.taken.append(place)
            self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
            baseline = y + height - style.padding - _DESCENT * style.font.size
            self.draw.text((x + style.padding, baseline), text, _contrast(color), style.font, "ls")
            return True
        return False

    def _places(self, box: Box, width: int, height: int) -> list[tuple[int, int]]:
        """Upper left corners, the best first: on top of the box, in it, below, along the sides."""
        x1, y1, x2, y2 = box
        right = x2 - width + 1
        wanted = [(x1, y1 - height), (x1, y1), (x1, y2 + 1), (right, y1 - height)]
        wanted += [(x1, y2 - height + 1), (right, y2 + 1), (right, y1), (right, y2 - height + 1)]
        wanted += [(x, y) for y in range(y1, y2 - height, height) for x in (x1, right)]
        places = []
        for x, y in wanted:
            if not 0 <= y <= self.size[1] - height:
                continue
            places.append((min(max(0, x), max(0, self.size[0] - width)), y))
        # a picture lower than a label: better a cut label than none
        return places or [(min(max(0, x1), max(0, self.size[0] - width)), 0)]


def _with_masks(image: Image.Image, masks: Sequence[tuple[Rle, Rgb]]) -> Image.Image:
    """The picture with every mask filled and outlined."""
    pixels_HW3 = np.array(image)
    for rle, color in masks:
        mask_HW = decode_mask(rle)
        if mask_HW.shape != pixels_HW3.shape[:2]:
            enlarged = Image.fromarray(mask_HW.astype(np.uint8) * 255)
            enlarged = enlarged.resize(image.size, Image.Resampling.BILINEAR)
            mask_HW = np.asarray(enlarged) >= 128
        inside = pixels_HW3[mask_HW]
        pixels_HW3[mask_HW] = np.rint(
            inside * (1 - _MASK_OPACITY) + np.array(color) * _MASK_OPACITY
        ).astype(np.uint8)
        pixels_HW3[_outline(mask_HW)] = color
    return Image.fromarray(pixels_HW3)


def _outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that touch its outside; the border of the picture is none."""
    padded = np.pad(mask_HW, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = mask_HW & ~inner
    return edge


def _scaled(box: Sequence[float], ratio_xy: tuple[float, float]) -> Box:
    """A box in whole pixels of the result, with no side reversed."""
    x1, y1 = round(box[0] * ratio_xy[0]), round(box[1] * ratio_xy[1])
    # the far sides are exclusive in float coordinates, inclusive where Pillow draws
    x2, y2 = round(box[2] * ratio_xy[0]) - 1, round(box[3] * ratio_xy[1]) - 1
    return x1, y1, max(x1, x2), max(y1, y2)


def _fitted(rgb_HW3: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(rgb_HW3))
    ratio = side / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contrast(color: Rgb) -> Rgb:
    """Black or white, whichever reads better on the colour."""
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)


@lru_cache(maxsize=16)
def _font(points: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and many signs."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if path.is_file():
        return ImageFont.truetype(str(path), points)
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(points))


def _text_size(font: ImageFont.FreeTypeFont, text: str) -> tuple[int, int]:
    """Width of the text, and the same height for any, so that all labels are equally high."""
    return math.ceil(font.getlength(text)), math.ceil((_ASCENT + _DESCENT) * font.size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept.rstrip() + "…" if kept else ""


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
