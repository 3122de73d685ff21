"""Training steps whose processes see different things; run by test_processes."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ext_common.evaluation.stopping import EvaluationStopped, evaluate_unless_stopped
from ext_common.hooks import LossRecorder
from ext_common.non_finite import NonFiniteLossError
from ext_common.train_step import Precision, TrainStep
from tests.dist.worker_mains import report


class UnequalModel(nn.Module):
    """Process 0 learns from everything; what process 1 does depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(1.0))
        self.only_boxes = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: Any) -> Any:
        kind = batch[0]["kind"]
        if kind == "boxes":
            return {"loss_box": 2 * self.only_boxes, "loss_cls": self.shared * 1.0}
        if kind == "labels":
            return {"loss_image": self.shared * 3}
        if kind == "nothing":
            return {"loss_box": torch.tensor(0.0)}
        return {"loss_box": self.shared * math.nan}


def run_unequal_steps(args: argparse.Namespace) -> None:
    """Steps of (process 0, process 1): boxes and labels, boxes and nothing, boxes and NaN."""
    report(args)  # one start of two processes serves two tests
    model = UnequalModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(model, optimizer, Precision("cpu"))
    recorder = LossRecorder()
    seen: dict[str, Any] = {"weights": [], "error": ""}
    with EventStorage() as storage:
        recorder.trainer = argparse.Namespace(storage=storage)
        for iteration, kind in enumerate(("labels", "nothing", "nan")):
            kind = "boxes" if comm.is_main_process() else kind
            try:
                losses = step([{"kind": kind, "image_id": 40 + comm.get_rank()}], iteration)
                recorder.record(iteration, losses, data_time=1.0 + comm.get_rank())
            except NonFiniteLossError as error:
                seen["error"] = str(error)
            seen["weights"].append([model.shared.item(), model.only_boxes.item()])
        recorder.flush()
        if comm.is_main_process():
            seen["metrics"] = {
                name: [list(entry) for entry in history.values()]
                for name, history in storage.histories().items()
            }
    seen["evaluated"] = _stopped_evaluation()
    Path(args.folder, f"steps_{comm.get_rank()}.json").write_text(json.dumps(seen))


def _stopped_evaluation() -> int:
    """Process 1 is asked to stop after two of six batches; how many each looked at."""
    looked_at: list[int] = []

    class Counting(DatasetEvaluator):
        def process(self, inputs: Any, outputs: Any) -> None:
            looked_at.append(inputs)

        def evaluate(self) -> Any:
            raise AssertionError("scored half an evaluation")

    def stop_asked() -> bool:
        return comm.get_rank() == 1 and len(looked_at) >= 2

    try:
        evaluate_unless_stopped(nn.Identity(), list(range(6)), Counting(), stop_asked)
    except EvaluationStopped:
        return len(looked_at)
    return -1
