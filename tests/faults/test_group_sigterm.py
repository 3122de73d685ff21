"""Case 38 of docs/reliability.md: SIGTERM to a run and to its loader workers at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.dist.tiny_training import write_run
from tests.faults.killed_run import run_tool
from tests.faults.test_training import ENDLESS, check_stopped, wait_for_checkpoint


def test_case_38_sigterm_to_the_whole_group_saves_a_checkpoint(tmp_path: Path) -> None:
    # as Slurm, torchrun and containers send it: the workers must outlive the run's last step
    run = write_run(tmp_path, SOLVER=ENDLESS, DATALOADER={"NUM_WORKERS": 2})
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    process = multiprocessing.get_context("fork").Process(target=run_tool, args=(words, errors))
    process.start()
    wait_for_checkpoint(run.output, process.is_alive)
    os.killpg(process.pid or 0, signal.SIGTERM)
    process.join()
    check_stopped(run, process.exitcode, errors.read_text(), "SIGTERM")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid or 0, 0)  # nobody is left
