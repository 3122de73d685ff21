"""How often the backbone runs: once per view, or once for views of one size.

``each`` is the released computation. ``grouped`` computes the same in fewer, larger runs: norms
keep the statistics of every view apart. ``joint`` has them over the views of one run, another
function (twice as many values for the statistics of views 1 and 2).

Shapes: N images, C channels, H x W the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from ext_common.errors import ConfigError
from soco_ext.modeling.grouped_norm import norms_in_groups

EACH, GROUPED, JOINT = "each", "grouped", "joint"
VIEW_PASSES = (EACH, GROUPED, JOINT)


def check_view_passes(passes: str) -> str:
    """The value itself.

    Raises:
        ConfigError: an unknown one.
    """
    if passes not in VIEW_PASSES:
        raise ConfigError(
            f"{passes!r} is not known", where="SOCO.VIEW_PASSES", fix=" or ".join(VIEW_PASSES)
        )
    return passes


def maps_of_views(
    run: Callable[[Tensor], Sequence[Tensor]],
    modules: Iterable[nn.Module],
    views: Sequence[Tensor],
    passes: str,
) -> list[list[Tensor]]:
    """What ``run`` gives for each view.

    Args:
        run: images [N, 3, H, W] to maps.
        modules: what it runs, whose norms are told the groups.
        views: those of one size that follow each other share a run, so that running statistics
            are updated in the order of the views.
        passes: of :data:`VIEW_PASSES`.
    """
    if passes == EACH:
        return [list(run(view)) for view in views]
    found: list[list[Tensor]] = []
    for _, alike in groupby(views, key=lambda view: view.shape):
        same = list(alike)
        together = torch.cat(same) if len(same) > 1 else same[0]
        with norms_in_groups(modules, len(same) if passes == GROUPED else 1):
            maps = run(together)
        parts = [map_NCHW.chunk(len(same)) for map_NCHW in maps]
        found += [list(of_view) for of_view in zip(*parts, strict=True)]
    return found
