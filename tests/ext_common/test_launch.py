from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from ext_common.cluster import JoinedProcess, find_joined_process, first_host
from ext_common.errors import DatasetError, ExtError, LaunchError
from ext_common.launch import launch, plan_processes, run_on_main, usable_device
from ext_common.worker_errors import ErrorBoard, WorkerCrash, first_line, rebuild_error

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "1",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "12003",
}


def arguments(**changes: object) -> argparse.Namespace:
    values: dict[str, object] = {
        "num_gpus": 1,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
    }
    return argparse.Namespace(**{**values, **changes})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_one_process_runs_here_and_gives_its_result() -> None:
    assert launch(lambda args: args.num_gpus + 41, arguments(), device="cpu") == 42


def test_cuda_without_a_gpu_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("cuda:0") == "cpu"
    assert plan_processes(arguments(num_gpus=0), "cpu").per_machine == 1


@pytest.mark.usefixtures("two_gpus")
def test_cuda_is_used_where_it_is() -> None:
    assert usable_device("cuda") == "cuda"
    assert usable_device("cpu") == "cpu"
    assert plan_processes(arguments(num_gpus=2), "cuda").world_size == 2


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "changes", "text"),
    [
        ("cuda", {"num_gpus": 8}, "this machine has 2 GPU"),
        ("cuda", {"num_gpus": 0}, "makes no process"),
        ("cpu", {"num_machines": 0}, "makes no process"),
        ("cpu", {"num_machines": 2, "machine_rank": 2}, "numbered 0 to 1"),
        ("cpu", {"num_machines": 2}, "tcp://HOST:PORT"),
    ],
)
def test_what_cannot_be_started_is_refused(
    device: str, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(LaunchError) as error:
        plan_processes(arguments(**changes), device)
    assert text in str(error.value)
    assert error.value.fix


def test_torchrun_is_recognised() -> None:
    assert find_joined_process(TORCHRUN) == JoinedProcess(5, 8, 1, 4, "env://")
    again = find_joined_process({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert again == JoinedProcess(5, 8, 1, 4, "env://", restarts=2)
    assert find_joined_process({}) is None


def test_srun_is_recognised() -> None:
    assert find_joined_process(SLURM) == JoinedProcess(3, 4, 1, 2, "tcp://gpu07:20003")
    chosen = {**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "99"}
    joined = find_joined_process(chosen)
    assert joined is not None
    assert joined.init_method == "tcp://head:99"


def test_all_jobs_get_a_valid_port() -> None:
    for job in (0, 11_999, 12_000, 4_294_967_293):
        joined = find_joined_process({**SLURM, "SLURM_JOB_ID": str(job)})
        assert joined is not None
        assert 1024 <= int(joined.init_method.rsplit(":", 1)[1]) < 32_768


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_single_task_of_slurm_starts_processes_itself(variables: dict[str, str]) -> None:
    assert find_joined_process({**SLURM, **variables}) is None


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8"),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({**SLURM, "SLURM_JOB_NODELIST": ""}, "cannot read a host"),
        ({**SLURM, "SLURM_LOCALID": ""}, "SLURM_LOCALID"),
    ],
)
def test_contradicting_variables_are_named(environment: dict[str, str], text: str) -> None:
    with pytest.raises(LaunchError, match=text.replace("[", "\\[")):
        find_joined_process(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[003-005,9]", "gpu003"),
        ("a[7,9]-ib,b1", "a7-ib"),
        ("a-b-[01-02],c", "a-b-01"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_joined_group_of_one_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert launch(lambda _: "here", arguments(num_gpus=8), device="cpu") == "here"
    assert not torch.distributed.is_initialized()


def test_run_on_main_gives_result_and_error_of_a_single_process() -> None:
    assert run_on_main(lambda: 3) == 3
    with pytest.raises(DatasetError, match="no images"):
        run_on_main(lambda: (_ for _ in ()).throw(DatasetError("no images")))


def report_error(board: ErrorBoard, rank: int, error: Exception) -> None:
    with pytest.raises(type(error)), board.reporting(rank):
        raise error


def test_the_first_error_wins_and_keeps_its_kind_and_traceback() -> None:
    ended = mp.ProcessRaisedException("...", 0, 1)
    with ErrorBoard.create() as board:
        report_error(board, 3, DatasetError("broken", where="a.json", fix="repair it"))
        report_error(board, 0, RuntimeError("Connection closed by peer"))
        error = rebuild_error(board, ended)
    assert type(error) is DatasetError
    assert str(error) == "process 3: a.json: broken (repair it)"
    assert "report_error" in error.__notes__[0]


def test_a_killed_process_comes_before_those_that_lost_it_and_after_a_known_error() -> None:
    ended = mp.ProcessRaisedException("...", 0, 1)
    with ErrorBoard.create() as board:
        report_error(board, 4, RuntimeError("Connection reset by peer"))
        board.note_exits([1, -9, -15], first_rank=4)
        assert str(rebuild_error(board, ended)).startswith("process 5: killed by SIGKILL")
        report_error(board, 7, RuntimeError("no more peers to eat"))
        report_error(board, 8, ZeroDivisionError("one\ntwo"))
        board.note_exits([None] * 4)
        assert "SIGKILL" in str(rebuild_error(board, ended))
    with ErrorBoard.create() as board:
        report_error(board, 1, ZeroDivisionError("one\ntwo"))
        board.note_exits([-9, 1])  # stuck, and ended by the launcher
        error = rebuild_error(board, ended)
    assert isinstance(error, WorkerCrash)
    assert str(error) == "process 1: ZeroDivisionError: one"


class LocalError(ExtError):
    """A kind that errors.py does not know."""


def test_kinds_defined_elsewhere_stay_expected_errors() -> None:
    with ErrorBoard.create() as board:
        report_error(board, 0, LocalError("odd"))
        error = rebuild_error(board, mp.ProcessRaisedException("...", 0, 1))
    assert type(error) is ExtError
    assert str(error) == "process 0: odd"


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (mp.ProcessExitedException("", 1, 2, -9, "SIGKILL"), "process 1: killed by SIGKILL"),
        (mp.ProcessExitedException("", 0, 2, 7), "process 0: ended with exit code 7"),
        (mp.ProcessRaisedException("trace", 1, 2), "process 1: stopped before"),
    ],
)
def test_a_process_that_left_no_word(ended: Exception, text: str) -> None:
    with ErrorBoard.create() as board:
        error = rebuild_error(board, ended)
    assert isinstance(error, WorkerCrash)
    assert text in str(error)


def test_boards_travel_to_processes_and_leave_nothing(tmp_path: Path) -> None:
    with ErrorBoard.create() as board:
        again = pickle.loads(pickle.dumps(board))
        report_error(again, 0, ValueError(""))
        record = board.first()
    assert record is not None
    assert record["what"] == "ValueError"
    assert not Path(board.folder).exists()


def test_first_line_of_an_exception() -> None:
    assert first_line(RuntimeError("\none\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
