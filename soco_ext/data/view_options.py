"""Settings of views, boxes and proposals: what the keys ``SOCO.VIEWS.*`` and ``SOCO.PROPOSALS.*`` hold.

Each field is the key of the same name in capitals; the defaults are those of the released FPN
scripts (specification section 7).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from soco_ext.data.view_spec import (
    COPY,
    CROP,
    NO_COLOUR,
    RARE_BLUR,
    STRONG_BLUR,
    WHOLE,
    CutoutSpec,
    JitterSpec,
    ViewPlan,
    ViewSpec,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PLANS = ("fpn_3view", "star_4view", "c4_2view")
SELECT_STRATEGIES = ("random", "top", "area", "none")
PROPOSAL_SOURCES = ("file", "random", "whole_image")
_VIEW_TEXT = re.compile(r"(whole|crop(?:[1-9]\d*)?):([1-9]\d*)")
_Options = TypeVar("_Options", bound="DataclassInstance")


@dataclass(frozen=True)
class ViewOptions:
    """Views and boxes.

    Args:
        plan: "fpn_3view", "star_4view" or "c4_2view"; not looked at where ``views`` is given.
        views: any views instead: "whole:224" (the whole image at 224 pixels), "crop:112" (a new
            random crop), "crop2:112" (the crop of view 2 at another size). The first is contrasted
            with all others.
        image_size: side of the first and second view in pixels.
        image3_size: side of the third view; 0 = 112 (FPN) or 192 (SoCo*).
        image4_size: side of the fourth view of SoCo*.
        third_view: "new_crop" (released code), or "reduced_second": the second view's crop at
            ``image3_size`` (paper). FPN plan only.
        crop: smallest share of the image's area that a crop has; C4's script has 0.6.
        colour: "byol", or "none" to leave colours alone.
        flip: chance of a horizontal flip of each view.
        select_strategy: which boxes of those that both views show: "random", "top" (the first),
            "area" (the largest) or "none" (all, up to ``padding_k``).
        select_k: how many.
        padding_k: boxes per image and view that the model gets; repeats fill up.
        max_tries: crops are drawn again up to this often while there are too few boxes.
        jitter_prob, jitter_ratio: of the first view's boxes; the C4 plan has no jitter.
        aware_range: largest side of a box, in pixels of its view, for each level.
        aware_start, aware_end: the levels that are used, from 0 = the finest; the end is excluded.
        cutout: zero a square in boxes of all views but the first (100-epoch FPN and C4 scripts).
            Off by default, since it stops the released code (section 2.8).
        cutout_prob, cutout_ratio_min, cutout_ratio_max: chance, and share of the box' area.

    Raises:
        ConfigError: values that cannot work.
    """

    plan: str = "fpn_3view"
    views: tuple[str, ...] = ()
    image_size: int = 224
    image3_size: int = 0
    image4_size: int = 112
    third_view: str = "new_crop"
    crop: float = 0.5
    colour: str = "byol"
    flip: float = 0.5
    select_strategy: str = "random"
    select_k: int = 4
    padding_k: int = 4
    max_tries: int = 5
    jitter_prob: float = 0.5
    jitter_ratio: float = 0.1
    aware_range: tuple[int, ...] = (48, 96, 192, 224, 0)
    aware_start: int = 0
    aware_end: int = 4
    cutout: bool = False
    cutout_prob: float = 0.5
    cutout_ratio_min: float = 0.1
    cutout_ratio_max: float = 0.3

    def __post_init__(self) -> None:
        _one_of("VIEWS.PLAN", self.plan, PLANS)
        _one_of("VIEWS.THIRD_VIEW", self.third_view, ("new_crop", "reduced_second"))
        if self.third_view != "new_crop" and self.plan != "fpn_3view" and not self.views:
            _refuse(
                "VIEWS.THIRD_VIEW",
                f"{self.third_view} with SOCO.VIEWS.PLAN {self.plan}, which does not look at it",
                "set it new_crop, or PLAN fpn_3view",
            )
        _one_of("VIEWS.COLOUR", self.colour, ("byol", "none"))
        _one_of("VIEWS.SELECT_STRATEGY", self.select_strategy, SELECT_STRATEGIES)
        if not 1 <= self.select_k <= self.padding_k:
            _refuse(
                "VIEWS.SELECT_K",
                f"{self.select_k} boxes in {self.padding_k} places (PADDING_K)",
                "1 <= SELECT_K <= PADDING_K",
            )
        if self.max_tries < 1:
            _refuse("VIEWS.MAX_TRIES", f"{self.max_tries} tries", "1 or more")
        if not 0 <= self.aware_start < self.aware_end <= len(self.aware_range):
            _refuse(
                "VIEWS.AWARE_END",
                f"levels {self.aware_start} to {self.aware_end} of {len(self.aware_range)} sizes",
                "0 <= AWARE_START < AWARE_END <= number of AWARE_RANGE",
            )
        for name in ("flip", "jitter_prob", "cutout_prob", "cutout_ratio_min", "cutout_ratio_max"):
            if not 0 <= getattr(self, name) <= 1:
                _refuse(f"VIEWS.{name.upper()}", f"{getattr(self, name)}", "0 to 1")
        if not 0 <= self.jitter_ratio < 0.5:
            _refuse("VIEWS.JITTER_RATIO", f"{self.jitter_ratio}", "0 or more, below 0.5")
        if self.cutout_ratio_min > self.cutout_ratio_max:
            _refuse("VIEWS.CUTOUT_RATIO_MIN", "is above CUTOUT_RATIO_MAX", "exchange them")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ViewOptions:
        """The values of ``cfg.SOCO.VIEWS``."""
        return _from_node(cls, cfg.SOCO.VIEWS)

    @property
    def levels(self) -> int:
        """Number of levels that boxes are assigned to."""
        return self.aware_end - self.aware_start

    def view_plan(self) -> ViewPlan:
        """The plan that these options describe."""
        jitter = JitterSpec(self.jitter_prob, self.jitter_ratio)
        if self.views:
            views = tuple(self._view(text, n) for n, text in enumerate(self.views))
            return ViewPlan(views, jitter)
        whole = self._spec(WHOLE, self.image_size, first=True)
        second = self._spec(CROP, self.image_size)
        if self.plan == "c4_2view":
            return ViewPlan((whole, second), None)
        star = self.plan == "star_4view"
        third_size = self.image3_size or (192 if star else max(self.image_size // 2, 1))
        if star:
            fourth = self._spec(COPY, self.image4_size, of=1)
            return ViewPlan((whole, second, self._spec(CROP, third_size), fourth), jitter)
        if self.third_view == "reduced_second":
            return ViewPlan((whole, second, self._spec(COPY, third_size, of=1)), jitter)
        return ViewPlan((whole, second, self._spec(CROP, third_size)), jitter)

    def _view(self, text: str, number: int) -> ViewSpec:
        found = _VIEW_TEXT.fullmatch(text)
        if found is None:
            _refuse("VIEWS.VIEWS", f"view {text!r}", "such as whole:224, crop:112 or crop2:112")
        source, size = found.group(1), int(found.group(2))
        first = number == 0
        if source in (WHOLE, CROP):
            return self._spec(source, size, first=first)
        return self._spec(COPY, size, of=int(source.removeprefix(CROP)) - 1)

    def _spec(
        self, source: str, size: int, *, of: int | None = None, first: bool = False
    ) -> ViewSpec:
        colour = STRONG_BLUR if first else RARE_BLUR
        share = (self.cutout_ratio_min, self.cutout_ratio_max)
        return ViewSpec(
            source,
            size,
            of=of,
            scale=(1.0 if source == WHOLE else self.crop, 1.0),
            colour=NO_COLOUR if self.colour == "none" else colour,
            cutout=CutoutSpec(self.cutout_prob, share) if self.cutout and not first else None,
            flip=self.flip,
        )


@dataclass(frozen=True)
class ProposalOptions:
    """Where the boxes of an image come from.

    Args:
        source: "file", "random" boxes drawn anew each time, or "whole_image": one box, which makes
            the training contrast images, not objects.
        file: for "file", what ``prepare_data.py soco-proposals`` wrote.
        strategy: filter that is applied to the boxes of the file, such as "ratio3size0308";
            empty = as they are.
        missing: an image that the file does not have: "error", "random" or "whole_image".
        empty: an image without boxes: "whole_image" (released code) or "random".
        max_props: tries for random boxes of an image (a box that does not fit is left out).
        aspect_ratio: their width : height is between 1 / this and this.
        min_size_ratio, max_size_ratio: range of the square root of their share of the image's area.

    Raises:
        ConfigError: values that cannot work.
    """

    source: str = "file"
    file: str = ""
    strategy: str = ""
    missing: str = "error"
    empty: str = "whole_image"
    max_props: int = 32
    aspect_ratio: float = 3.0
    min_size_ratio: float = 0.3
    max_size_ratio: float = 0.8

    def __post_init__(self) -> None:
        _one_of("PROPOSALS.SOURCE", self.source, PROPOSAL_SOURCES)
        _one_of("PROPOSALS.MISSING", self.missing, ("error", "random", "whole_image"))
        _one_of("PROPOSALS.EMPTY", self.empty, ("whole_image", "random"))
        if self.source == "file" and not self.file:
            _refuse(
                "PROPOSALS.FILE",
                "no file of proposals",
                "make one with tools/prepare_data.py soco-proposals, "
                "or set SOCO.PROPOSALS.SOURCE random",
            )
        if self.max_props < 1:
            _refuse("PROPOSALS.MAX_PROPS", f"{self.max_props} tries", "1 or more")
        if not 1 <= self.aspect_ratio < math.inf:
            _refuse("PROPOSALS.ASPECT_RATIO", f"{self.aspect_ratio}", "1 or more")
        if not 0 <= self.min_size_ratio <= self.max_size_ratio < math.inf:
            _refuse(
                "PROPOSALS.MIN_SIZE_RATIO",
                f"sizes from {self.min_size_ratio} to {self.max_size_ratio} (MAX_SIZE_RATIO)",
                "0 <= MIN_SIZE_RATIO <= MAX_SIZE_RATIO",
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ProposalOptions:
        """The values of ``cfg.SOCO.PROPOSALS``."""
        return _from_node(cls, cfg.SOCO.PROPOSALS)


def _from_node(kind: type[_Options], node: CfgNode) -> _Options:
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = node[field.name.upper()]
        values[field.name] = tuple(value) if isinstance(value, list | tuple) else value
    return kind(**values)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        _refuse(key, f"unknown value {value!r}", f"one of {', '.join(known)}")


def _refuse(key: str, what: str, fix: str) -> NoReturn:
    raise ConfigError(what, where=f"SOCO.{key}", fix=fix)
