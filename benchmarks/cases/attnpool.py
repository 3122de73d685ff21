"""CLIP's attention pool on regions: one query with folded projections, or all tokens as queries.

Shapes: R regions, C channels, S side of a map.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.regionclip_pretraining import all_queries
from regionclip_ext.modeling.attention_pool import AttentionPool
from regionclip_ext.modeling.encoder_shapes import SHAPES


def build(device: torch.device, *, regions: int, name: str, backward: bool = False) -> Problem:
    """Embeddings of a picture's regions.

    Args:
        device: where.
        regions: R.
        name: of the CLIP model.
        backward: with the gradient of the maps.
    """
    shape = SHAPES[name]
    return _problem(device, regions, shape.pool_side, 32 * shape.width, shape.heads, backward)


def build_tiny(device: torch.device) -> Problem:
    """A few small maps, with gradients."""
    return _problem(device, 5, 2, 16, 4, backward=True)


def _problem(
    device: torch.device, regions: int, side: int, channels: int, heads: int, backward: bool
) -> Problem:
    torch.manual_seed(0)
    pool = AttentionPool(side, channels, heads, channels // 2).to(device)
    maps_RCSS = torch.randn(regions, channels, side, side, device=device).relu_()

    def run(forward: partial[Tensor]) -> Results:
        if not backward:
            with torch.no_grad():
                return {"embeddings": forward(maps_RCSS)}
        maps = maps_RCSS.clone().requires_grad_()
        embeddings = forward(maps)
        (gradient,) = torch.autograd.grad(embeddings.square().sum(), maps)
        return {"embeddings": embeddings.detach(), "gradient": gradient}

    return Problem(
        {"ours": partial(run, partial(pool)), "naive": partial(run, partial(all_queries, pool))}
    )


CASE = Case(
    name="attnpool",
    what="CLIP attention pool on regions: one folded query, or all tokens as queries",
    variants=(
        Variant("RN50, 100 regions", partial(build, regions=100, name="RN50"), target=10),
        Variant("RN50x4, 100 regions", partial(build, regions=100, name="RN50x4"), target=10),
        Variant("RN50, 1000 regions", partial(build, regions=1000, name="RN50"), target=10),
        Variant("RN50x4, 1000 regions", partial(build, regions=1000, name="RN50x4"), target=10),
        *(
            Variant(
                f"{name}, {regions} regions, training",
                partial(build, regions=regions, name=name, backward=True),
            )
            for name in ("RN50", "RN50x4")
            for regions in (100, 1000)
        ),
    ),
    tiny=Variant("tiny", build_tiny),
    tolerance=1e-6,
    most_repeats=3,
)
