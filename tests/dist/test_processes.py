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
from tests.dist.step_main import run_unequal_steps
from tests.dist.worker_mains import arguments, fail_in_process_one

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


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two started processes wrote."""
    folder = tmp_path_factory.mktemp("reports")
    launch(run_unequal_steps, arguments(2, folder=str(folder)), device="cpu")
    return folder


def test_started_processes_form_a_group_as_detectron2_expects_it(reports: Path) -> None:
    check_reports(reports)


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
    try:
        assert [task.wait(timeout=500) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.kill()
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


def test_processes_with_unequal_batches_train_correctly_and_stop_together(reports: Path) -> None:
    main, other = (json.loads((reports / f"steps_{rank}.json").read_text()) for rank in range(2))
    # gradients are means over processes: shared (1 + 3) / 2 then (1 + 0) / 2, only_boxes 2 / 2
    assert main["weights"][0] == [1 - 2.0, 1 - 1.0]
    assert main["weights"][1] == [-1 - 0.5, 0 - 1.0]
    # the step with NaN in process 1 updates nobody
    assert main["weights"][2] == main["weights"][1]
    assert other["weights"] == main["weights"]
    for seen in (main, other):
        assert "iteration 2" in seen["error"]
        assert "process 1, images 41" in seen["error"]
    metrics = main["metrics"]
    assert metrics["data_time"] == [[2.0, 0], [2.0, 1]]
    # a loss is averaged over the processes that had it
    assert metrics["loss_image"] == [[3.0, 0]]
    assert metrics["loss_box"] == [[2.0, 0], [0.0, 1]]
    assert metrics["loss_cls"] == [[1.0, 0], [-1.0, 1]]
    assert metrics["total_loss"] == [[3.0, 0], [-0.5, 1]]


def test_an_evaluation_that_one_process_must_leave_ends_in_both(reports: Path) -> None:
    found = [json.loads((reports / f"steps_{rank}.json").read_text()) for rank in range(2)]
    assert [seen["evaluated"] for seen in found] == [6, 2]
