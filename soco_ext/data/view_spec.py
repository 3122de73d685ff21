"""What the views of an image are: one description instead of one dataset class per variant.

A :class:`ViewPlan` is a tuple of views; the first one is contrasted with every other. ``soco.md``
section 2 describes the published plans, :data:`FPN_3VIEW`, :data:`STAR_4VIEW` and :data:`C4_2VIEW`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ext_common.errors import ConfigError

WHOLE = "whole"
CROP = "crop"
COPY = "copy"
SOURCES = (WHOLE, CROP, COPY)


@dataclass(frozen=True)
class ColourSpec:
    """A BYOL colour pipeline (section 2.7); the operations are applied in this order.

    Args:
        jitter: chance of changing brightness, contrast, saturation and hue.
        amounts: largest change of those four, as torchvision's ``ColorJitter`` takes them.
        grey: chance of losing the colours.
        blur: chance of a Gaussian blur.
        blur_sigma: its radius is drawn from this range, in pixels of the view.
        solarise: chance of inverting what is brighter than ``solarise_from``.
        solarise_from: 0..255.
    """

    jitter: float = 0.8
    amounts: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    solarise_from: int = 128


STRONG_BLUR = ColourSpec()
"""The first view's pipeline."""
RARE_BLUR = ColourSpec(blur=0.1, solarise=0.2)
"""The other views' pipeline."""
NO_COLOUR = ColourSpec(jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
"""Leaves the colours alone."""


@dataclass(frozen=True)
class CutoutSpec:
    """Squares that are set to 0 in the boxes of a normalised view (section 2.8).

    Args:
        chance: of each box.
        area: the square's area is drawn from this range, as a share of the box.
    """

    chance: float = 0.5
    area: tuple[float, float] = (0.1, 0.3)


@dataclass(frozen=True)
class JitterSpec:
    """Moving and resizing the first view's boxes (section 2.4).

    Args:
        chance: of each box.
        ratio: largest shift and growth, as a share of the box' width or height.
    """

    chance: float = 0.5
    ratio: float = 0.1


@dataclass(frozen=True)
class ViewSpec:
    """One view.

    Args:
        source: "whole" image, a random "crop" of it, or a "copy": the crop of another view.
        size: side of the square view in pixels; the aspect of what is resized is not kept.
        of: for a copy, the number (from 0) of the view whose crop is used again.
        scale: for a crop, range of its share of the image's area (not looked at otherwise).
        aspect: for a crop, range of width : height.
        colour: colour pipeline.
        cutout: None = no cutout.
        flip: chance of a horizontal flip.

    Raises:
        ConfigError: an unknown source, or sizes and ranges that cannot be.
    """

    source: str
    size: int
    of: int | None = None
    scale: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    colour: ColourSpec = RARE_BLUR
    cutout: CutoutSpec | None = None
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ConfigError(f"unknown view {self.source!r}", fix=f"one of {', '.join(SOURCES)}")
        if self.size < 1:
            raise ConfigError(f"a view of {self.size} pixels", fix="1 pixel or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(
                f"crops of {self.scale[0]} to {self.scale[1]} of the image's area",
                where="SOCO.VIEWS.CROP",
                fix="more than 0, at most 1",
            )
        if (self.of is None) == (self.source == COPY):
            raise ConfigError("a copy, and only a copy, names the view that it copies")


@dataclass(frozen=True)
class ViewPlan:
    """The views of an image and how boxes are chosen for each pair (first view, other view).

    Args:
        views: two or more; the first is the one that all others are contrasted with.
        jitter: of the first view's boxes; None = none.

    Raises:
        ConfigError: fewer than two views, or a copy of a view that is not an earlier crop.
    """

    views: tuple[ViewSpec, ...]
    jitter: JitterSpec | None = JitterSpec()

    def __post_init__(self) -> None:
        if len(self.views) < 2:
            raise ConfigError("fewer than two views", where="SOCO.VIEWS")
        for number, view in enumerate(self.views):
            if view.of is None:
                continue
            if not 0 < view.of < number or self.views[view.of].source != CROP:
                raise ConfigError(
                    f"view {number + 1} is a copy of view {view.of + 1}",
                    where="SOCO.VIEWS",
                    fix="copy an earlier view that is a crop and not the first",
                )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Numbers (from 0) of the views of each pair."""
        return tuple((0, other) for other in range(1, len(self.views)))

    def drawn_by(self, view: int) -> int:
        """The view whose crop and boxes a view has: itself, or the one that it copies."""
        of = self.views[view].of
        return view if of is None else of

    def without_colour(self) -> ViewPlan:
        """The same plan with the colours left alone."""
        return replace(self, views=tuple(replace(v, colour=NO_COLOUR) for v in self.views))


def _published(*others: ViewSpec, jitter: JitterSpec | None = JitterSpec()) -> ViewPlan:
    whole = ViewSpec(WHOLE, 224, scale=(1.0, 1.0), colour=STRONG_BLUR)
    return ViewPlan((whole, *others), jitter)


FPN_3VIEW = _published(ViewSpec(CROP, 224), ViewSpec(CROP, 112))
"""SoCo with an FPN, 400 epochs."""
STAR_4VIEW = _published(ViewSpec(CROP, 224), ViewSpec(CROP, 192), ViewSpec(COPY, 112, of=1))
"""SoCo*."""
C4_2VIEW = _published(ViewSpec(CROP, 224, scale=(0.6, 1.0), cutout=CutoutSpec()), jitter=None)
"""SoCo with a C4 backbone."""
