"""Cases 37 to 39 of docs/reliability.md: faults while training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.data.mapper import DetectionMapper
from ext_common.evaluation.coco import CocoEvaluator
from ext_common.interruption import INTERRUPTED_CODE, outlive_first_sigterm
from ext_common.non_finite import NonFiniteLossError
from ext_common.trainer import ExtTrainer
from tests.dist.tiny_training import TinyRun, write_run
from tests.faults.killed_run import in_new_process, run_tool
from tests.faults.train_main import FaultyTrainer

REPOSITORY = Path(__file__).parents[2]
LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def config(run: TinyRun) -> CfgNode:
    """The configuration of a run in this process."""
    packages.register_all()
    cfg = load_config(run.config_file)
    register_from_config(cfg)
    return cfg


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_checkpoint(folder: Path, alive: Callable[[], bool]) -> None:
    """Return when there is one, or the run has ended."""
    while not list(folder.glob("model_*.pth.json")) and alive():
        time.sleep(0.1)


class Spoilt:
    """A model's forward whose loss (or only its gradient) is not finite at some iterations."""

    def __init__(self, trainer: ExtTrainer, at: set[int], *, gradient: bool) -> None:
        self.trainer, self.at, self.gradient = trainer, at, gradient
        self.forward = trainer.model.forward

    def __call__(self, batch: Any) -> Any:
        losses = self.forward(batch)
        if self.trainer.iter in self.at:
            name = "loss_cls"
            if self.gradient:  # sqrt has an infinite slope at 0
                losses[name] = losses[name] + (losses[name] * 0).sqrt()
            else:
                losses[name] = losses[name] * float("nan")
        return losses


def spoilt_trainer(cfg: CfgNode, at: set[int], *, gradient: bool) -> ExtTrainer:
    trainer = ExtTrainer(cfg)
    trainer.model.forward = Spoilt(trainer, at, gradient=gradient)  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("gradient", [False, True])
def test_case_37_a_non_finite_step_stops_before_the_update_and_is_documented(
    tmp_path: Path, gradient: bool
) -> None:
    cfg = config(write_run(tmp_path, SOLVER={"MAX_ITER": 3}))
    trainer = spoilt_trainer(cfg, {0}, gradient=gradient)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="gradient" if gradient else "loss_cls=nan"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    folder = Path(cfg.OUTPUT_DIR) / "crash" / "iter_0"
    report = json.loads((folder / "report.json").read_text())
    (seen,) = report["processes"]
    assert len(seen["images"]) == 2
    assert set(seen["images"]) <= {"1", "2", "3", "4"}
    assert set(seen["losses"]) == LOSSES
    assert (seen["losses"]["loss_cls"] == "nan") is not gradient
    assert report["learning_rates"] == [0.01]
    assert next(iter(report["gradient_norms"].values())) in ("nan", "inf")
    assert report["versions"]["torch"] == torch.__version__
    assert load_config(folder / "config.yaml").SOLVER.MAX_ITER == 3


def test_case_37_up_to_k_steps_are_left_out(tmp_path: Path) -> None:
    solver = {"MAX_ITER": 4, "NONFINITE_SKIP": 2, "CHECKPOINT_PERIOD": 100}
    cfg = config(write_run(tmp_path, SOLVER=solver))
    trainer = spoilt_trainer(cfg, {1, 2}, gradient=True)
    trainer.train()
    assert trainer.train_step.skipped == 2
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    folder = Path(cfg.OUTPUT_DIR)
    assert {path.name for path in (folder / "crash").iterdir()} == {"iter_1", "iter_2"}
    # the number goes on counting after a resume: no third one
    cfg.SOLVER.MAX_ITER = 6
    trainer = spoilt_trainer(cfg, {5}, gradient=False)
    trainer.resume_or_load(resume=True)
    with pytest.raises(NonFiniteLossError, match="iteration 5"):
        trainer.train()


ENDLESS: dict[str, Any] = {
    "MAX_ITER": 1_000_000,
    "CHECKPOINT_PERIOD": 2,
    "CHECKPOINT_KEEP_LAST": 1,
}


def check_stopped(run: TinyRun, code: int | None, error: str, signal_name: str) -> None:
    assert code == INTERRUPTED_CODE, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("train_net: error: ")
    assert f"stopped by {signal_name} after iteration" in last
    assert "--resume continues" in last
    (checkpoint,) = run.output.glob("model_*.pth")
    state = torch.load(checkpoint, weights_only=True)
    assert f"after iteration {state['iteration']}," in last
    assert state["loader"]["position"] == 2 * (state["iteration"] + 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_case_38_a_signal_saves_a_checkpoint_and_has_its_own_exit_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = write_run(tmp_path, SOLVER=ENDLESS, DATALOADER={"NUM_WORKERS": 1})
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    process = multiprocessing.get_context("fork").Process(target=run_tool, args=(words, errors))
    process.start()
    wait_for_checkpoint(run.output, process.is_alive)
    if number == signal.SIGINT:
        os.killpg(process.pid or 0, number)  # its loader workers too, as the keyboard does it
    else:
        process.terminate()
    process.join()
    check_stopped(run, process.exitcode, errors.read_text(), number.name)


def test_case_38_a_loader_worker_outlives_a_sigterm_to_the_group() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def work() -> None:
        outlive_first_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        there.send("alive")
        os.kill(os.getpid(), signal.SIGTERM)

    process = context.Process(target=work)
    process.start()
    process.join()
    assert here.recv() == "alive"
    assert process.exitcode == -signal.SIGTERM


def test_case_38_the_starting_process_hands_sigterm_on(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER=ENDLESS)
    words = ["tools/train_net.py", "--config-file", str(run.config_file), "--num-gpus", "2"]
    with started(*words) as process:
        wait_for_checkpoint(run.output, lambda: process.poll() is None)
        process.terminate()
        error = process.communicate()[1]
    check_stopped(run, process.returncode, error, "SIGTERM")


@pytest.mark.parametrize("fault", ["worker", "worker-seen-here"])
def test_case_38_a_killed_loader_worker_is_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 50}, DATALOADER={"NUM_WORKERS": 1})
    monkeypatch.setenv("FAULT", f"{fault}:3")
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    assert in_new_process(lambda: run_tool(words, errors, FaultyTrainer)) == 1
    last = errors.read_text().strip().splitlines()[-1]
    assert last.startswith("train_net: error: after images ")
    assert "a loader worker" in last
    assert "NUM_WORKERS" in last
    assert (run.output / "model_0000001.pth").exists()


def test_case_38_a_loader_worker_killed_while_evaluating_is_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 1}, DATALOADER={"NUM_WORKERS": 1})
    read = DetectionMapper.__call__

    def read_or_die(self: DetectionMapper, record: Any) -> Any:
        if not self.is_train and record["image_id"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, record)

    monkeypatch.setattr(DetectionMapper, "__call__", read_or_die)
    words = ["--config-file", str(run.config_file), "DATASETS.TEST", f"('{run.val}',)"]
    errors = tmp_path / "errors.txt"
    assert in_new_process(lambda: run_tool(words, errors)) == 1
    last = errors.read_text().strip().splitlines()[-1]
    assert last.startswith("train_net: error: a loader worker")
    assert "while evaluating" in last
    assert (run.output / "model_final.pth").exists()


@pytest.mark.timeout(600)  # process 0 would wait for half an hour
def test_case_38_a_killed_process_ends_the_others_and_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 50})
    words = ["-m", "tests.faults.train_main", "--config-file", str(run.config_file)]
    with started(*words, "--num-gpus", "2", FAULT="kill:1:3") as process:
        error = process.communicate()[1]
    assert process.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("train_net: error: process 1: killed by SIGKILL")
    assert (run.output / "model_0000001.pth").exists()


share_memory = torch.UntypedStorage._share_fd_cpu_


def full_in_workers(*args: Any) -> Any:
    """What torch says in a loader worker when /dev/shm is full (checked with a tmpfs of 1 MB)."""
    if torch.utils.data.get_worker_info() is None:
        return share_memory(*args)
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
    )


@pytest.mark.timeout(600)  # torch itself would wait for the lost batch for ever
def test_case_38_full_shared_memory_is_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 50}, DATALOADER={"NUM_WORKERS": 1})
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full_in_workers)
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    assert in_new_process(lambda: run_tool(words, errors)) == 1
    last = errors.read_text().strip().splitlines()[-1]
    # torch's own message before it ends with a zero byte
    assert last.lstrip("\0").startswith("train_net: error: the first batch: a loader worker")
    assert "shared memory is full: enlarge /dev/shm or lower DATALOADER.NUM_WORKERS" in last


@pytest.mark.timeout(600)
def test_case_38_a_batch_that_cannot_be_sent_is_a_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 50}, DATALOADER={"NUM_WORKERS": 1})
    read = DetectionMapper.__call__
    unpicklable: dict[str, Any] = {"function": lambda: 0}
    monkeypatch.setattr(
        DetectionMapper, "__call__", lambda self, record: {**read(self, record), **unpicklable}
    )
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    assert in_new_process(lambda: run_tool(words, errors)) == 1
    text = errors.read_text()
    assert "a loader worker" in text.strip().splitlines()[-1]
    assert "pickle" in text


def test_case_38_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = {"MAX_ITER": 3, "CHECKPOINT_PERIOD": 100}
    run = write_run(tmp_path, SOLVER=solver, TEST={"EVAL_PERIOD": 2})
    words, errors = ["--config-file", str(run.config_file)], tmp_path / "errors.txt"
    test_set = ["DATASETS.TEST", f"('{run.val}',)"]
    seen = tmp_path / "seen.txt"
    process_batch = CocoEvaluator.process
    asked_at = [2]  # pictures of an evaluation after which the signal comes

    def process(self: CocoEvaluator, inputs: Any, outputs: Any) -> None:
        process_batch(self, inputs, outputs)
        with seen.open("a") as stream:
            stream.write("x")
        if len(seen.read_text()) == asked_at[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CocoEvaluator, "process", process)
    assert in_new_process(lambda: run_tool([*words, *test_set], errors)) == INTERRUPTED_CODE
    assert len(seen.read_text()) == 2  # of four pictures
    last = errors.read_text().strip().splitlines()[-1]
    assert "stopped by SIGTERM while evaluating after iteration 1, the checkpoint is saved" in last
    assert (run.output / "model_0000001.pth").exists()
    # and at the end of training, where everything is saved already
    asked_at[0] = 3
    resumed = [words[0], words[1], "--resume", *test_set]
    assert in_new_process(lambda: run_tool(resumed, errors)) == INTERRUPTED_CODE
    last = errors.read_text().strip().splitlines()[-1]
    assert "model_final.pth: stopped by SIGTERM while evaluating after iteration 2" in last
    assert not (run.output / "results.json").exists()
    asked_at[0] = 0
    assert in_new_process(lambda: run_tool(resumed, errors)) == 0
    assert run.val in json.loads((run.output / "results.json").read_text())


def test_case_38_torchrun_starts_a_killed_group_again_and_it_resumes(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 6, "CHECKPOINT_PERIOD": 2})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["--max-restarts", "1", "-m", "tests.faults.train_main"]
    options = ["--config-file", str(run.config_file)]
    with started(*torchrun, *words, *options, FAULT="kill:1:4") as process:
        error = process.communicate()[1]
    assert process.returncode == 0, error
    state = torch.load(run.output / "model_final.pth", weights_only=True)
    assert state["iteration"] == 5
    assert state["loader"]["position"] == 12
    log = (run.output / "log.txt").read_text()
    assert "Resuming from" in log
    assert "model_0000003.pth" in log


class _Empty:
    """Batches whose images have no object."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        for batch in self.batches:
            for item in batch:
                item["instances"] = item["instances"][:0]
            yield batch


def test_case_39_no_positives_and_no_proposals_train_the_same_set_of_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(write_run(tmp_path, SOLVER={"MAX_ITER": 2}))
    trainer = ExtTrainer(cfg)
    trainer.data_loader = _Empty(trainer.data_loader)
    trainer.model.roi_heads.proposal_append_gt = False
    generator = trainer.model.proposal_generator
    predict = generator.predict_proposals

    def no_proposals(*args: Any) -> Any:
        return [proposals[:0] for proposals in predict(*args)]

    monkeypatch.setattr(generator, "predict_proposals", no_proposals)
    seen = []
    monkeypatch.setattr(
        trainer._recorder, "record", lambda _, losses, data_time: seen.append(losses)
    )
    trainer.train()
    assert [set(losses.names) for losses in seen] == [LOSSES, LOSSES]
    assert all(torch.isfinite(losses.values_K).all() for losses in seen)
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
