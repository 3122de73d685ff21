"""The law of what freezing saves: the specification's numbers, and counts of a real model."""

from __future__ import annotations

import pytest
import torch
from detectron2.utils.events import EventStorage

from frozen_backbone_ext.cost import StepCost, step_cost
from tests.frozen_backbone_ext.tiny_frozen import frozen_model, item


@pytest.mark.parametrize(
    ("cost", "ratio"),
    [
        (StepCost(85.9, 59.4 + 51.8 + 7.1, 8.1), 0.707),
        (StepCost(171.2, 59.4 + 51.8 + 65.8, 8.1), 0.665),
        (StepCost(267.4, 1888.8 / 3 - 267.4, 3.8 * 1.5625), 0.714),
    ],
    ids=["Faster R50-FPN", "RS-101-FPN", "Cascade RS-101 NAS-FPN"],
)
def test_the_tables_ratios(cost: StepCost, ratio: float) -> None:
    assert cost.ideal_ratio() == pytest.approx(ratio, abs=2e-3)
    assert cost.share_of_saving(cost.ideal_ratio()) == pytest.approx(1)
    assert cost.ideal_ratio(2.0) < cost.ideal_ratio()


def test_counts_of_a_detector() -> None:
    model = frozen_model().train()
    picture = item()

    def forward() -> None:
        with EventStorage(0):
            model([picture])

    cost = step_cost(model, forward)
    # 64 pixels: maps of 8, 4 and 2 pixels a side, projected to 8 channels
    laterals = 8 * (32 * 64 + 64 * 16 + 128 * 4)
    assert cost.first == laterals
    assert cost.trunk > 0
    assert cost.rest > cost.first
    trunk_only = step_cost(model, lambda: model.backbone.bottom_up(torch.zeros(1, 3, 64, 64)))
    assert trunk_only.trunk == cost.trunk
    assert trunk_only.rest == 0
    stem = 32 * 32 * 8 * 3 * 49
    assert cost.trunk > stem
