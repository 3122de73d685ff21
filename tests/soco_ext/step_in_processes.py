"""One training step of SoCo models in any number of processes; run by test_processes.

Shapes: N images of all processes together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ext_common.launch import launch
from ext_common.modeling.build import build_model
from ext_common.train_step import Precision, StepOptions, TrainStep
from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.view_batch import ViewBatch, collate
from tests.dist.worker_mains import arguments
from tests.soco_ext.tiny_soco import SIZES, samples, tiny_config

IMAGES = 4
CASES: dict[str, tuple[str, list[Any]]] = {
    "dense": ("SoCoFPN", []),
    "sparse, grouped passes": (
        "SoCoFPN",
        ["SOCO.LEVEL_USE", "sparse", "SOCO.VIEW_PASSES", "grouped"],
    ),
    "c4": ("SoCoC4", []),
    "own statistics": ("SoCoFPN", ["SOCO.NORM", "BN"]),
}


def step_of_all_cases(folder: Path, processes: int) -> dict[str, dict[str, Tensor]]:
    """State after one step of SGD on the same images, and the loss, for each case.

    The loss is the mean over the processes; all else is that of the last one.
    """
    launch(_run, arguments(processes, folder=str(folder)), device="cpu")
    found = [torch.load(folder / f"{processes}_{rank}.pth") for rank in range(processes)]
    for case, state in found[-1].items():
        state["loss"] = torch.stack([one[case]["loss"] for one in found]).mean()
    last: dict[str, dict[str, Tensor]] = found[-1]
    return last


def _run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found = {case: _step(model, words) for case, (model, words) in CASES.items()}
    path = Path(args.folder, f"{comm.get_world_size()}_{comm.get_rank()}.pth")
    torch.save(found, path)


def _step(name: str, words: Sequence[Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model: Any = build_model(tiny_config(name, *words)).double().train()
    assert isinstance(model, ContrastiveModel)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)  # residual branches start at zero
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    options = StepOptions(find_unused_parameters=False)
    step = TrainStep(model, optimizer, Precision("cpu"), options)
    losses = step(_own_part(name))
    assert losses is not None
    return {"loss": losses.values_K.mean(), **model.state_dict()}


def _own_part(name: str) -> ViewBatch:
    """This process' images; on level 3 only the last process has boxes of view 1."""
    size = IMAGES // comm.get_world_size()
    made = samples(IMAGES, 0, SIZES[name])
    for number, sample in enumerate(made):
        for pair in sample["pairs"]:
            pair["levels"][0].clamp_(max=2)
            if number == IMAGES - 1:
                pair["levels"][0][:] = 3
    own = collate(made[comm.get_rank() * size :][:size], torch.device("cpu"))
    for pair in own.pairs:
        for box_set in (pair.first, pair.second):
            object.__setattr__(box_set, "boxes_NK5", box_set.boxes_NK5.double())
    return ViewBatch([view.double() for view in own.views], own.pairs)
