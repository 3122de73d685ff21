from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ext_common.errors import DatasetError, ExtError
from ext_common.launch import launch
from ext_common.worker_errors import WorkerCrash
from tests.dist.worker_mains import arguments, fail_in_process_one, report

REPOSITORY = Path(__file__).parents[2]


def check_reports(folder: Path) -> None:
    for rank in range(2):
        seen = json.loads((folder / f"{rank}.json").read_text())
        assert seen == {
            "ranks": [0, 1],
            "local_rank": rank,
            "local_size": 2,
            "threads": 1,
            "shared_error": "DatasetError: dataset 'x': no images",
        }


def test_started_processes_form_a_group_as_detectron2_expects_it(tmp_path: Path) -> None:
    launch(report, arguments(2, folder=str(tmp_path)), device="cpu")
    check_reports(tmp_path)


def test_processes_of_srun_join_without_arguments(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "SLURM_NTASKS": "2",
        "SLURM_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.dist.worker_mains", str(tmp_path)],
            cwd=REPOSITORY,
            env={**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    check_reports(tmp_path)


@pytest.mark.timeout(300)  # without the launcher's doing process 0 would wait for half an hour
@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("ours", DatasetError, "process 1: a.jpg: image is corrupt (remove it)"),
        ("killed", WorkerCrash, "process 1: killed by SIGKILL"),
    ],
)
def test_a_process_that_fails_ends_the_others_and_is_named(
    how: str, kind: type[ExtError], text: str
) -> None:
    with pytest.raises(kind) as error:
        launch(fail_in_process_one, arguments(2, how=how), device="cpu")
    assert text in str(error.value)
