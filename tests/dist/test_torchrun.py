from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.dist.tiny_training import write_run

REPOSITORY = Path(__file__).parents[2]


def test_torchrun_trains_and_started_processes_resume(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 2})
    tool = ["tools/train_net.py", "--config-file", str(run.config_file)]
    options: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *torchrun, *tool], **options)
    assert done.returncode == 0, done.stderr
    first = torch.load(run.output / "model_final.pth", weights_only=True)
    assert first["iteration"] == 1
    assert len(first["random"]) == 2  # the generators of both processes
    more = ["--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "3"]
    done = subprocess.run([sys.executable, *tool, *more], **options)
    assert done.returncode == 0, done.stderr
    second = torch.load(run.output / "model_final.pth", weights_only=True)
    assert second["iteration"] == 2
    assert second["loader"]["position"] == 6  # three steps of two images
    metrics = [json.loads(line) for line in (run.output / "metrics.json").open()]
    assert [line["iteration"] for line in metrics if "total_loss" in line] == [1, 2]
    assert (run.output / "log.txt.rank1").exists()
