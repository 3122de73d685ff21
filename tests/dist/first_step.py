"""The first training step of any config file with any number of processes, for comparison."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.launch import launch
from ext_common.trainer import ExtTrainer


def first_step(
    config_file: Path, folder: Path, processes: int, opts: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Train one step in new processes (in this one if ``processes`` is 1).

    Args:
        config_file: any config; give a SEED and a batch size that the processes can divide.
        folder: for the output.
        processes: how many, on CPU.
        opts: KEY VALUE pairs.

    Returns:
        ``losses``: each loss, averaged over the processes; ``updates``: for each trained parameter
        the norm of what the step added to it.
    """
    result = folder / f"first_step_{processes}.json"
    args = argparse.Namespace(
        num_gpus=processes,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        config_file=str(config_file),
        opts=[*opts, "OUTPUT_DIR", str(folder / f"output_{processes}")],
        result=str(result),
    )
    launch(_train_one_step, args, device="cpu")
    content: dict[str, dict[str, float]] = json.loads(result.read_text())
    return content


def _train_one_step(args: argparse.Namespace) -> None:
    packages.register_all()
    cfg = load_config(args.config_file, args.opts)
    register_from_config(cfg)
    trainer = ExtTrainer(cfg)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with EventStorage():
        step = trainer.train_step(next(iter(trainer.data_loader)))
    mine = dict(zip(step.names, step.values_K.tolist(), strict=True))
    updates = {name: float((p.detach() - before[name]).norm()) for name, p in trained.items()}
    everyones = comm.all_gather(mine)
    assert all(others == updates for others in comm.all_gather(updates))
    if comm.is_main_process():
        losses = {name: sum(one[name] for one in everyones) / len(everyones) for name in mine}
        Path(args.result).write_text(json.dumps({"losses": losses, "updates": updates}))
