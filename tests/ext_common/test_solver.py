from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from ext_common.config import get_config
from ext_common.errors import ConfigError
from ext_common.solver import (
    build_lr_scheduler,
    build_optimizer,
    clip_by_global_norm,
    parameter_groups,
)
from tests.golden_cases import golden_root


def solver_config(**values: Any) -> CfgNode:
    cfg = get_config()
    for key, value in values.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


class GoldenModule(nn.Module):
    """The module that the golden file describes in its README."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)
        self.reference_points = nn.Linear(3, 2)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.tied = self.head


@pytest.mark.golden
@pytest.mark.parametrize("optimizer_name", ["SGD", "ADAMW"])
def test_golden_optimizer_groups(optimizer_name: str) -> None:
    golden = json.loads((golden_root() / "detic" / "data_tools.json").read_text())["optim"]
    cfg = solver_config(
        USE_CUSTOM_SOLVER=True,
        OPTIMIZER=optimizer_name,
        BASE_LR=0.001,
        BACKBONE_MULTIPLIER=0.1,
        CUSTOM_MULTIPLIER=0.5,
        CUSTOM_MULTIPLIER_NAME=["reference_points"],
    )
    model = GoldenModule()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        [
            names[id(group["params"][0])],
            group["lr"],
            group["weight_decay"],
            group.get("momentum"),
        ]
        for group in build_optimizer(cfg, model).param_groups
    ]
    assert groups == golden[optimizer_name]


def test_multipliers_of_one_name_multiply() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1, bias=False)})
    (group,) = parameter_groups(
        model,
        base_lr=1.0,
        backbone_multiplier=0.1,
        custom_multiplier=0.5,
        custom_names=["bone.w", "back"],
    )
    assert group["lr"] == pytest.approx(0.05)
    assert "weight_decay" not in group


def test_without_the_custom_solver_detectron2_builds() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = build_optimizer(solver_config(WEIGHT_DECAY_NORM=0.0), model)
    assert isinstance(optimizer, torch.optim.SGD)
    decays = sorted(g["weight_decay"] for g in optimizer.param_groups)
    assert decays == [0.0, 1e-4]


@pytest.mark.parametrize("custom", [False, True])
def test_full_model_clipping_scales_all_gradients_by_one_factor(custom: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    cfg = solver_config(
        USE_CUSTOM_SOLVER=custom, BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0, NESTEROV=False
    )
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.25
    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 0.25
    for old, new, gradient in zip(before, model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient * (0.25 / norm))
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED  # the caller's configuration is left alone


def test_global_norm_below_the_limit_changes_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    clip_by_global_norm(optimizer, 10.0)
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert parameter.tolist() == [-3.0, -4.0]


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_detectron2_clipping_types_work_with_the_custom_solver(clip_type: str) -> None:
    parameter_model = nn.Linear(2, 1, bias=False)
    start = parameter_model.weight.detach().clone()
    cfg = solver_config(USE_CUSTOM_SOLVER=True, BASE_LR=1.0, MOMENTUM=0.0, WEIGHT_DECAY=0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    optimizer = build_optimizer(cfg, parameter_model)
    parameter_model.weight.grad = torch.tensor([[3.0, 4.0]])
    optimizer.step()
    expected = {"value": [1.0, 1.0], "norm": [0.6, 0.8]}[clip_type]
    step = start - parameter_model.weight.detach()
    torch.testing.assert_close(step, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("OPTIMIZER", "ADAM", "SOLVER.OPTIMIZER"),
        ("CLIP_GRADIENTS.CLIP_TYPE", "full", "CLIP_TYPE"),
    ],
)
def test_an_unknown_choice_is_named_with_the_known_ones(key: str, value: str, place: str) -> None:
    cfg = solver_config(USE_CUSTOM_SOLVER=True)
    cfg.merge_from_list([f"SOLVER.{key}", value])
    with pytest.raises(ConfigError, match=place) as error:
        build_optimizer(cfg, nn.Linear(1, 1))
    assert value in str(error.value)
    assert "one of" in error.value.fix


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter"):
        build_optimizer(solver_config(), nn.Linear(1, 1).requires_grad_(False))


def learning_rates(cfg: CfgNode, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_schedule_spans_max_iter_whatever_train_iter_says() -> None:
    cfg = solver_config(
        LR_SCHEDULER_NAME="WarmupCosineLR",
        BASE_LR=2.0,
        MAX_ITER=10,
        WARMUP_ITERS=2,
        WARMUP_FACTOR=0.5,
        TRAIN_ITER=4,
    )
    rates = learning_rates(cfg, 10)
    for i in range(2, 10):
        assert rates[i] == pytest.approx(1.0 + math.cos(math.pi * i / 10))
    assert rates[0] == pytest.approx(1.0)


def test_step_schedule_multiplies_by_gamma() -> None:
    cfg = solver_config(
        LR_SCHEDULER_NAME="WarmupMultiStepLR",
        BASE_LR=1.0,
        MAX_ITER=6,
        STEPS=(2, 4),
        WARMUP_ITERS=0,
        GAMMA=0.1,
    )
    assert learning_rates(cfg, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("key", "value"), [("LR_SCHEDULER_NAME", "Cosine"), ("STEPS", (4, 2)), ("MAX_ITER", 0)]
)
def test_impossible_schedules_are_config_errors(key: str, value: object) -> None:
    cfg = solver_config(MAX_ITER=10, WARMUP_ITERS=2)
    setattr(cfg.SOLVER, key, value)
    if key != "STEPS":
        cfg.SOLVER.STEPS = (1,)
    with pytest.raises(ConfigError, match="SOLVER"):
        learning_rates(cfg, 1)
