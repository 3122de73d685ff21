"""LARS and the learning-rate schedules against recorded runs of the original code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from soco_ext.solver.lars import LARS
from soco_ext.solver.schedule import IterationLR, Schedule, WarmUp, WarmUpCosine, WarmUpSteps
from tests.golden_cases import golden_arrays

pytestmark = pytest.mark.golden


def cases(name: str, prefix: str) -> list[int]:
    return sorted(
        int(key[len(prefix) :]) for key in golden_arrays("soco", name) if key.startswith(prefix)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_golden_lars_steps(dtype: torch.dtype) -> None:
    # the recorded values are float32
    tolerances = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-7}
    )
    arrays = golden_arrays("soco", "lars.npz")
    params = {
        key.removeprefix("init/"): nn.Parameter(torch.from_numpy(arrays[key]).to(dtype))
        for key in arrays
        if key.startswith("init/")
    }
    plain = {str(name) for name in arrays["no_decay_no_adapt"]}
    adapted = {str(name) for name in arrays["adapted"]}
    for name, parameter in params.items():
        parameter.requires_grad_(name in plain | adapted)
    optimizer = LARS(
        [
            {"params": [params[n] for n in params if n in plain], "adapt": False},
            {
                "params": [params[n] for n in params if n in adapted],
                "weight_decay": float(arrays["weight_decay"]),
            },
        ],
        lr=1.0,
        momentum=float(arrays["momentum"]),
        trust=float(arrays["trust_coef"]),
        eps=float(arrays["eps"]),
    )
    for step, lr in enumerate(arrays["lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name, parameter in params.items():
            key = f"grad{step}/{name}"
            parameter.grad = (
                torch.from_numpy(arrays[key]).to(dtype)
                if key in arrays and parameter.requires_grad
                else None
            )
        optimizer.step()
        for key in (key for key in arrays if key.startswith(f"after{step}/")):
            actual = params[key.split("/")[1]].detach().numpy()
            np.testing.assert_allclose(actual, arrays[key], **tolerances, err_msg=key)
        for key in (key for key in arrays if key.startswith(f"buf{step}/")):
            actual = optimizer.state[params[key.split("/")[1]]]["momentum_buffer"].numpy()
            np.testing.assert_allclose(actual, arrays[key], **tolerances, err_msg=key)


@pytest.mark.parametrize("case", cases("lr_schedule.npz", "cfg_"))
def test_golden_learning_rates(case: int) -> None:
    arrays = golden_arrays("soco", "lr_schedule.npz")
    lr, epochs, warm_up_epochs, per_epoch, multiplier = map(float, arrays[f"cfg_{case}"])
    warm_up = WarmUp(round(warm_up_epochs * per_epoch), multiplier)
    schedule: Schedule
    if arrays[f"kind_{case}"].item() == "cosine":
        schedule = WarmUpCosine(warm_up, round(epochs * per_epoch))
    else:  # milestones of this case: README of the golden folder
        schedule = WarmUpSteps(warm_up, [round(8 * per_epoch), round(14 * per_epoch)], 0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    stepping = IterationLR(optimizer, schedule)
    used = []
    for _ in arrays[f"lr_{case}"]:
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepping.step()
    np.testing.assert_allclose(used, arrays[f"lr_{case}"], rtol=1e-9, atol=1e-15)
