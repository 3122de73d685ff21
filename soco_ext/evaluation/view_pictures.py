"""The views of a picture with the boxes that SoCo contrasts, to be looked at.

Shapes: K boxes of a picture or of a view in a pair, H, W its rows and columns, S side of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ext_common.drawing import class_color
from soco_ext.data.colour import to_pixels
from soco_ext.data.crops import Crop
from soco_ext.data.draws import Draws
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_spec import WHOLE

Rgb = tuple[int, int, int]

CELLS_OF_A_PAIR = 3
"""The picture, its first view, and the view that this one is contrasted with."""
UNMATCHED: Rgb = (150, 150, 150)
"""Boxes that only one view of the pair has, and the proposals on the picture."""
CROP_LINE: Rgb = (255, 255, 255)
_RIM: Rgb = (20, 20, 20)
_TAG_POINTS = 11


@dataclass(frozen=True)
class ViewCell:
    """One cell of the sheet.

    Args:
        pixels_HW3: uint8 RGB.
        caption: what it is.
    """

    pixels_HW3: NDArray[np.uint8]
    caption: str


def view_cells(
    maker: ViewMaker,
    image_HW3: NDArray[np.uint8],
    proposals_K4: NDArray[np.number],
    draws: Draws,
    *,
    name: str,
    side: int,
) -> list[ViewCell]:
    """Three cells for each pair of views, drawn as the training would draw them.

    The first cell is the picture with its proposals (grey) and the crops of the pair (white). The others are the two views with the boxes that the model gets, repeats once. A colour
    and a number stand for one object in all views of the picture; grey boxes have no counterpart
    in the other view.

    Args:
        maker: makes views.
        image_HW3: uint8 RGB.
        proposals_K4: x1, y1, x2, y2 in pixels, the last one inside.
        draws: random numbers of the sample.
        name: caption of the picture.
        side: S, pixels; views are enlarged to it, the picture's longer side as well.
    """
    size_hw = (image_HW3.shape[0], image_HW3.shape[1])
    drawn = maker.draw_boxes(size_hw, proposals_K4, draws)
    flips = tuple(draws.uniform(0.0, 1.0) < view.flip for view in maker.plan.views)
    sample = maker.render(Image.fromarray(image_HW3), drawn, flips, draws)
    views = [to_pixels(view.numpy()) for view in sample["views"]]
    boxes = [[each.numpy() for each in pair["boxes"]] for pair in sample["pairs"]]
    colours = object_colours([each for pair in boxes for each in pair])
    cells = []
    for pair, sides in zip(sample["pairs"], boxes, strict=True):
        numbers = pair["views"]
        crops = [drawn.crops[n] for n in numbers if maker.plan.views[n].source != WHOLE]
        cells.append(ViewCell(_picture(image_HW3, proposals_K4, crops, side), name))
        matched = set(sides[0][:, 4].tolist()) & set(sides[1][:, 4].tolist())
        own = {key: rgb for key, rgb in colours.items() if key in matched}
        for number, shares_K5 in zip(numbers, sides, strict=True):
            spec = maker.plan.views[number]
            mirrored = ", mirrored" if flips[number] else ""
            caption = f"view {number + 1}: {spec.source} {spec.size}{mirrored}"
            cells.append(ViewCell(draw_boxes(views[number], shares_K5, own, side), caption))
    return cells


def object_colours(lists_K5: Sequence[NDArray[np.floating]]) -> dict[float, Rgb]:
    """A colour for every id (the fifth number) in lists of boxes, in order of the ids."""
    ids = sorted({float(key) for boxes_K5 in lists_K5 for key in boxes_K5[:, 4]})
    return {key: class_color(place) for place, key in enumerate(ids)}


def draw_boxes(
    view_HW3: NDArray[np.uint8],
    shares_K5: NDArray[np.floating],
    colours: Mapping[float, Rgb],
    side: int,
) -> NDArray[np.uint8]:
    """A view, enlarged, with its boxes and their ids.

    Args:
        view_HW3: RGB, square.
        shares_K5: x1, y1, x2, y2 as shares of the side, and the id; an id is drawn once.
        colours: by id; :data:`UNMATCHED` for others.
        side: S of the result.

    Returns:
        uint8 [S, S, 3].
    """
    image = Image.fromarray(view_HW3).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    once = {float(row[4]): row for row in shares_K5[::-1]}
    # those that count are drawn last, on top
    in_order = sorted(once, key=lambda key: key in colours)
    corners = {
        key: _outline(draw, once[key][:4] * side, colours.get(key, UNMATCHED), 2)
        for key in in_order
    }
    taken: list[tuple[float, ...]] = []
    for key in reversed(in_order):
        _tag(draw, f"{key:.0f}", corners[key], colours.get(key, UNMATCHED), taken)
    return np.array(image)


def _tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[int, int, int, int],
    colour: Rgb,
    taken: list[tuple[float, ...]],
) -> None:
    """Write a text at the left border of a box, where no other is yet; ``taken`` has their places."""
    font = ImageFont.load_default(_TAG_POINTS)
    width, height = font.getbbox(text)[2] + 6, _TAG_POINTS + 5
    x = min(box[0], draw.im.size[0] - width)
    for y in range(box[1], max(box[1] + 1, box[3] - height), height):
        place = (x, y, x + width, y + height)
        if not any(
            x < x2 and x1 < place[2] and y < y2 and y1 < place[3] for x1, y1, x2, y2 in taken
        ):
            taken.append(place)
            draw.rectangle(place, fill=_RIM, outline=colour)
            draw.text((x + 3, y + 2), text, CROP_LINE, font)
            return


def _picture(
    image_HW3: NDArray[np.uint8], proposals_K4: NDArray[np.number], crops: Sequence[Crop], side: int
) -> NDArray[np.uint8]:
    height, width = image_HW3.shape[:2]
    ratio = side / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    image = Image.fromarray(image_HW3).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for box_4 in proposals_K4:
        _outline(draw, box_4 * ratio, UNMATCHED, 1)
    for crop in crops:
        _outline(draw, np.array(crop.corners) * ratio, CROP_LINE, 2)
    return np.array(image)


def _outline(
    draw: ImageDraw.ImageDraw, box_4: NDArray[np.number], colour: Rgb, line: int
) -> tuple[int, int, int, int]:
    """Draw a box (pixels) with a dark line inside its own, and give it in whole pixels."""
    width, height = draw.im.size
    x1, x2 = (min(max(round(float(value)), 0), width - 1) for value in box_4[::2])
    y1, y2 = (min(max(round(float(value)), 0), height - 1) for value in box_4[1::2])
    x2, y2 = max(x1, x2), max(y1, y2)
    if line > 1 and min(x2 - x1, y2 - y1) > 2 * line + 1:
        # keeps the line visible where the picture has its colour
        rim = (x1 + line, y1 + line, x2 - line, y2 - line)
        draw.rectangle(rim, outline=_RIM)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
    return x1, y1, x2, y2
