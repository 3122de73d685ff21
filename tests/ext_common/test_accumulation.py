"""Gradient accumulation: the step of the large batch, from small ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.micro_batches import MicroBatches, next_micro_batches
from ext_common.non_finite import NonFiniteLossError
from ext_common.solver import build_optimizer, effective_batch, scaled_lr
from ext_common.train_step import Precision, StepOptions, TrainStep

Sample = dict[str, Any]


class Model(nn.Module):
    """Two losses that are means over the batch, and a count of the forward passes of a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.told: list[tuple[int, int]] = []

    def set_micro_batch(self, index: int, count: int) -> None:
        self.told.append((index, count))

    def forward(self, batch: list[Sample]) -> dict[str, Tensor]:
        values = self.net(torch.stack([sample["x"] for sample in batch]))
        return {"square": values.square().mean(), "absolute": values.abs().mean()}


def samples(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return [{"x": x[i], "image_id": i} for i in range(count)]


def stepper(model: nn.Module, precision: Precision | None = None) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return TrainStep(model, optimizer, precision or Precision("cpu"), StepOptions())


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_micro_batches_make_the_step_of_the_large_batch(parts: int) -> None:
    large, small = Model(), Model()
    large_step, small_step = stepper(large), stepper(small)
    for seed in range(3):
        batch = samples(12, seed)
        size = len(batch) // parts
        split = MicroBatches(tuple(batch[i : i + size] for i in range(0, len(batch), size)))
        a, b = large_step(batch), small_step(split)
        assert a is not None
        assert b is not None
        assert a.names == b.names
        torch.testing.assert_close(a.values_K, b.values_K, rtol=1e-6, atol=0)
    for p, q in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # losses are float32
    assert small.told == [(i, parts) for i in range(parts)] * 3


def test_accumulated_gradients_are_exchanged_once_and_scaled_once() -> None:
    large, small = Model(), Model()
    batch = samples(8)
    scaled = Precision("cpu", enabled=True, dtype="float16")
    stepper(large, Precision("cpu", enabled=True, dtype="float16"))(batch)
    stepper(small, scaled)(MicroBatches((batch[:4], batch[4:])))
    for p, q in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_micro_batch_stops_the_whole_step(bad: int) -> None:
    model = Model()
    before = [p.detach().clone() for p in model.parameters()]
    parts = [samples(2, seed) for seed in range(3)]
    parts[bad][0]["x"] = parts[bad][0]["x"] * math.nan
    parts[bad][0]["image_id"] = "bad.jpg"
    with pytest.raises(NonFiniteLossError, match=r"bad\.jpg"):
        stepper(model)(MicroBatches(tuple(parts)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loss_that_only_some_micro_batches_have_is_shared_among_all() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, batch: list[str]) -> dict[str, Tensor]:
            return {batch[0]: self.weight * 4.0}

    model = Mixed()
    found = TrainStep(model, torch.optim.SGD(model.parameters(), lr=1.0), Precision("cpu"))(
        MicroBatches((["a"], ["b"], ["a"], ["a"]))
    )
    assert found is not None
    assert dict(zip(found.names, found.values_K.tolist(), strict=True)) == {"a": 3.0, "b": 1.0}
    assert model.weight.item() == -3.0


def test_batches_are_taken_together() -> None:
    batches = iter([["a"], ["b"], ["c"]])
    assert next_micro_batches(batches, 1) == ["a"]
    together = next_micro_batches(batches, 2)
    assert isinstance(together, MicroBatches)
    assert together.samples() == ["b", "c"]
    assert next_micro_batches(iter([["a"]]), 2) is None


def test_learning_rate_rule_follows_the_effective_batch(caplog: pytest.LogCaptureFixture) -> None:
    words: list[Any] = ["SOLVER.IMS_PER_BATCH", "32", "SOLVER.ACCUMULATE", "64"]
    cfg = load_config("", [*words, "SOLVER.BASE_LR", "1.0", "SOLVER.LR_REFERENCE_BATCH", "256"])
    assert effective_batch(cfg) == 2048
    with caplog.at_level("INFO", logger="ext_common.solver"):
        optimizer = build_optimizer(cfg, nn.Linear(2, 2))
    assert {group["lr"] for group in optimizer.param_groups} == {8.0}
    assert "32 images x 64 accumulated = 2048 per step" in caplog.text
    assert "1 x 2048 / 256 = 8" in caplog.text
    assert scaled_lr(load_config("", [*words, "SOLVER.BASE_LR", "0.5"])) == 0.5


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.ACCUMULATE"):
        effective_batch(load_config("", ["SOLVER.ACCUMULATE", "0"]))
