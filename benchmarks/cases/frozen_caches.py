"""What a frozen network's results on disk save, for pictures that come again (spec 8.1, 8.2).

``ours`` finds everything on disk, ``naive`` computes it. The folder is a temporary one, so its
files are in the system's page cache; a slow disk adds its own time.
Measured: the maps of the trunk alone, a training step with a frozen trunk, and a step of the long
tail's second stage, which needs the regions' features only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.frozen_steps import SMALL, FrozenStep, Settings, Way, make_steps
from frozen_backbone_ext.second_stage import balance_predictors, box_predictors

_TRUNK: Settings = {"MODEL.BACKBONE_FREEZE.POLICY": "trunk"}
_STAGE2: Settings = {**_TRUNK, "MODEL.CLASSIFIER_STAGE2.ENABLED": "True"}
KINDS = ("trunk", "step", "second stage")


@dataclass(frozen=True)
class _Cached:
    """One way of one kind; the folder lives as long as it."""

    kind: str
    step: FrozenStep
    folder: TemporaryDirectory[str]

    def run(self) -> Results:
        """The kind's results."""
        if self.kind == "trunk":
            maps: dict[str, Tensor] = self.step.trunk()()
            return maps
        if self.kind == "step":
            return self.step.run()
        return self._second_stage()

    def _second_stage(self) -> Results:
        model: Any = self.step.model
        (predictor,) = box_predictors(model)
        predictor.zero_grad()
        losses = self.step.losses()
        losses["loss_cls"].backward()
        gradient = predictor.cls_score.weight.grad
        assert gradient is not None
        return {"loss": losses["loss_cls"].detach(), "gradient": gradient.clone()}


def build(
    device: torch.device, *, kind: str, size: int = 512, changes: Settings | None = None
) -> Problem:
    """Both ways; the first call of ``ours`` fills the folder.

    Args:
        device: where.
        kind: one of :data:`KINDS`.
        size: side of the picture.
        changes: config keys on top of the detector's.
    """
    folder = TemporaryDirectory(prefix="frozen-caches-")
    own = _STAGE2 if kind == "second stage" else _TRUNK
    key = "CLASSIFIER_STAGE2" if kind == "second stage" else "BACKBONE_FREEZE"
    ways = {
        "ours": Way("stored", {**own, f"MODEL.{key}.CACHE_FOLDER": folder.name}),
        "naive": Way("computed", own),
    }
    steps = make_steps(device, ways=ways, size=size, changes=changes)
    found = {name: _Cached(kind, step, folder) for name, step in steps.items()}
    if kind == "second stage":
        for step in steps.values():
            model: Any = step.model
            classes = model.roi_heads.num_classes
            balance_predictors(model, torch.arange(1.0, classes + 1), 0.99, "mean")
        # regions are drawn after the RPN drew its anchors; draw them alike
        plain: Any = steps["naive"].model
        plain.proposal_generator.register_forward_hook(_draw_alike)
    found["ours"].run()
    return Problem({name: way.run for name, way in found.items()})


def _draw_alike(*_: object) -> None:
    torch.manual_seed(0)


CASE = Case(
    name="frozen_caches",
    what="Faster R-CNN R50-FPN: maps of the frozen trunk, or regions' features, on disk or computed",
    variants=tuple(Variant(f"{kind}, 512 px", partial(build, kind=kind)) for kind in KINDS),
    tiny=Variant("tiny", partial(build, kind="second stage", size=128, changes=SMALL)),
    tolerance=1e-4,
    most_repeats=3,
)
