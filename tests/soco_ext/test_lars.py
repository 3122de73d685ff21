"""LARS: a loop twin, what is not adapted, and resuming."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ext_common.config import load_config
from ext_common.packages import register_all
from ext_common.solver import build_lr_scheduler, build_optimizer
from soco_ext.solver.lars import LARS, lars_groups


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def twin_step(
    parameter: Tensor, grad: Tensor, buffer: Tensor | None, hyper: dict[str, float]
) -> tuple[Tensor, Tensor]:
    """Specification 4, one parameter."""
    if parameter.ndim > 1:
        grad = grad + hyper["decay"] * parameter
        p_norm, g_norm = parameter.norm().item(), grad.norm().item()
        if p_norm > 0 and g_norm > 0:
            grad = grad * (hyper["trust"] * p_norm / (g_norm + hyper["eps"]))
    buffer = grad.clone() if buffer is None else hyper["momentum"] * buffer + grad
    return parameter - hyper["lr"] * buffer, buffer


def test_equals_a_loop_over_parameters() -> None:
    hyper = {"lr": 0.7, "decay": 0.01, "trust": 0.02, "eps": 1e-8, "momentum": 0.9}
    model = network().double()
    optimizer = LARS(
        lars_groups(model, weight_decay=hyper["decay"]),
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        trust=hyper["trust"],
        eps=hyper["eps"],
    )
    buffers: dict[str, Tensor] = {}
    for step in range(3):
        images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        model(images).square().sum().backward()
        expected = {}
        for name, p in model.named_parameters():
            assert p.grad is not None
            expected[name], buffers[name] = twin_step(p.detach(), p.grad, buffers.get(name), hyper)
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_groups_hold_every_trained_parameter_once() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    plain, adapted = lars_groups(model, weight_decay=0.1)
    assert [p.ndim for p in plain["params"]] == [1, 1, 1, 1]
    assert [p.ndim for p in adapted["params"]] == [2]
    assert (plain["weight_decay"], plain["adapt"], adapted["weight_decay"]) == (0.0, False, 0.1)


def test_gradients_are_left_as_they_were() -> None:
    model = network()
    optimizer = LARS(lars_groups(model, weight_decay=0.1), lr=0.1)
    train(model, optimizer, range(1))
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_resume_continues_exactly() -> None:
    straight, parted = network(), network()
    whole = LARS(lars_groups(straight, weight_decay=0.1), lr=0.5)
    train(straight, whole, range(4))
    first = LARS(lars_groups(parted, weight_decay=0.1), lr=0.5)
    train(parted, first, range(2))
    second = LARS(lars_groups(parted, weight_decay=0.1), lr=9.0)
    second.load_state_dict(first.state_dict())
    train(parted, second, range(2, 4))
    for a, b in zip(straight.parameters(), parted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["SoCoCosine", "SoCoStep"])
def test_configuration_builds_lars_and_its_schedule(name: str) -> None:
    register_all()
    words: list[Any] = ["SOLVER.OPTIMIZER", "LARS", "SOLVER.LR_SCHEDULER_NAME", name]
    words += ["SOLVER.BASE_LR", "1.0", "SOLVER.LR_REFERENCE_BATCH", "256"]
    words += ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "16", "SOLVER.WARMUP_ITERS", "10"]
    words += ["SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(20, 30)", "SOLVER.LARS.TRUST", "0.01"]
    cfg = load_config("", words)
    model = network()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    assert isinstance(optimizer, LARS)
    assert [group["trust"] for group in optimizer.param_groups] == [0.01, 0.01]
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.5 / 100)
    assert rates[10] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(1e-6 if name == "SoCoCosine" else 0.005)
    again = build_lr_scheduler(cfg, build_optimizer(cfg, model))
    again.load_state_dict(scheduler.state_dict())
    assert again.last_epoch == 41
