"""Worker of test_mixed_batches: boxes on one process, image labels on the other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from tests.detic_ext.tiny_model import box_item, label_item, tiny_model

STEPS = 3


def train(args: argparse.Namespace) -> None:
    """A few steps in which the processes swap kinds; every one writes its weights' sum."""
    rank = comm.get_rank()
    model = DistributedDataParallel(
        tiny_model().train(), broadcast_buffers=False, find_unused_parameters=False
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    names = []
    with EventStorage(0):
        for step in range(STEPS):
            torch.manual_seed(10 * step + rank)
            batch = [box_item()] if (rank + step) % 2 == 0 else [label_item([1, 2])]
            losses = model(batch)
            names.append(sorted(losses))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    total = [float(p.detach().double().sum()) for p in model.parameters()]
    Path(f"{args.result}.{rank}").write_text(json.dumps({"names": names, "weights": total}))
