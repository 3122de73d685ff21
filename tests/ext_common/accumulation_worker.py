"""Accumulated steps in two processes; run by test_accumulation_processes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ext_common.micro_batches import MicroBatches
from ext_common.train_step import Precision, TrainStep


class TwoHeads(nn.Module):
    """Odd batches use one head, even ones the other."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.ones(2))
        self.third = nn.Parameter(torch.ones(()))

    def forward(self, batch: list[int]) -> dict[str, Tensor]:
        (number,) = batch
        return {"loss": self.heads[number % 2] * float(number) * self.third}


def train(args: argparse.Namespace) -> None:
    """One step of batches 1, 2 (process 0) and 3, 4 (process 1), with a count of the batches without exchange."""
    model = TwoHeads()
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=1.0), Precision("cpu"))
    without_exchange = 0
    plain = step._losses.no_sync

    def counted() -> Any:
        nonlocal without_exchange
        without_exchange += 1
        return plain()

    step._losses.no_sync = counted
    first = 2 * comm.get_rank() + 1
    losses = step(MicroBatches(([first], [first + 1])))
    assert losses is not None
    seen = {
        "loss": losses.values_K.tolist(),
        "heads": model.heads.tolist(),
        "third": model.third.item(),
        "without_exchange": without_exchange,
    }
    Path(args.folder, f"{comm.get_rank()}.json").write_text(json.dumps(seen))
