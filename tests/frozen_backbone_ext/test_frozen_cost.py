"""The cost command: what every way saves, in a model small enough to count."""

from __future__ import annotations

import pytest
import torch

from benchmarks.frozen_cost import main, measure
from benchmarks.frozen_steps import FAST, SMALL, WAYS, make_steps
from benchmarks.saved_memory import saved_for_backward
from frozen_backbone_ext.cost import StepCost

CPU = torch.device("cpu")


def test_saved_bytes_by_hand() -> None:
    layer = torch.nn.Linear(4, 8, bias=False)
    given = torch.ones(3, 4)
    assert saved_for_backward(layer, lambda: layer(given)) == 3 * 4 * 4
    assert saved_for_backward(layer, lambda: layer(given).relu()) == 3 * 4 * 4 + 3 * 8 * 4
    with torch.no_grad():
        assert saved_for_backward(layer, lambda: layer(given)) == 0


def test_ways_save_what_they_should() -> None:
    steps = make_steps(CPU, size=128, changes=SMALL)
    cost, rows = measure(steps, WAYS, CPU, rounds=1, peaks={"ours": 7})
    found = dict(zip(WAYS, rows, strict=True))
    assert found["ours"].saved == found["requires_grad"].saved == found["folded"].saved
    assert found["ours"].saved < found["freeze_at_2"].saved < found["naive"].saved
    assert found["optimizer"].saved == found["naive"].saved
    assert found["naive"].ratio == found["naive"].law == found["optimizer"].law == 1
    assert found["ours"].law < found["freeze_at_2"].law < 1
    assert found["ours"].law == pytest.approx(
        (3 * cost.rest + cost.trunk - cost.first) / (3 * cost.rest + 3 * cost.trunk)
    )
    assert found["naive"].share is None
    assert found["naive"].speed_up is None
    assert found["ours"].speed_up is not None
    assert found["ours"].peak == 7
    assert found["naive"].peak is None


def test_a_part_of_the_trunk_by_hand() -> None:
    cost = StepCost(trunk=100.0, rest=50.0, first=5.0, idle=20.0)
    assert cost.partial_ratio() == pytest.approx((3 * 150 - 2 * 20) / (3 * 150))


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    opts = [word for pair in SMALL.items() for word in pair]
    options = ["--size", "128", "--rounds", "1", "--no-memory"]
    assert main([*options, *opts]) == 0
    out = capsys.readouterr().out
    assert "law at k = 1" in out
    assert all(f"| {way.what} |" in out for way in WAYS.values())
    with pytest.raises(SystemExit):
        main([*options, "MODEL.WEIGHTS"])


def test_the_way_of_a_gpu_computes_the_same_in_bfloat16() -> None:
    ways = {"ours": WAYS["ours"], "fast": FAST["fast"]}
    steps = make_steps(CPU, ways=ways, size=128, changes=SMALL, mixed=True)
    losses = {name: float(step.run()["loss"]) for name, step in steps.items()}
    assert losses["fast"] == pytest.approx(losses["ours"], rel=0.05)
    assert steps["fast"].trunk()()["res5"].dtype == torch.bfloat16
