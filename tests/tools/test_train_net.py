from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ext_common.run_folder import remove_run, resolve_output_dir
from ext_common.run_results import write_results
from tests.dist.tiny_training import TinyRun, write_run
from tools import train_net

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The tool sets logging up for a whole process, which is this one here."""
    names = ("fvcore", "detectron2", "ext_common", *train_net.packages.PACKAGES)
    before = {}
    for name in names:
        logger = logging.getLogger(name)
        before[name] = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for name, (level, propagate, handlers) in before.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers = handlers


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    return write_run(tmp_path, SOLVER={"MAX_ITER": 2})


def start(run: TinyRun, *words: str) -> int:
    return train_net.main(["--config-file", str(run.config_file), *words])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert not [line for line in lines if line.startswith("Traceback")]
    return lines[-1]


def test_training_then_evaluation_from_the_command_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 2})
    tool = [sys.executable, "tools/train_net.py", "--config-file", str(run.config_file)]
    options: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True}
    test_set = ["DATASETS.TEST", f"('{run.val}',)"]
    done = subprocess.run([*tool, *test_set], **options)
    assert done.returncode == 0, done.stderr
    trained = json.loads((run.output / "results.json").read_text())
    assert "AP50" in trained[run.val]["bbox"]
    assert "AP50" in done.stdout
    weights = ["MODEL.WEIGHTS", str(run.output / "model_final.pth")]
    evaluated = subprocess.run(
        [*tool, "--eval-only", *test_set, *weights, "OUTPUT_DIR", str(tmp_path / "eval")], **options
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "eval" / "results.json").read_text()) == trained
    assert not list((tmp_path / "eval").glob("*.pth"))
    refused = subprocess.run([*tool, "SOLVER.MAX_ITR", "3"], **options)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "train_net: error: command line: unknown config key SOLVER.MAX_ITR "
        "(did you mean SOLVER.MAX_ITER?)"
    ]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["SOLVER.MAX_ITER"], ["KEY VALUE pairs"]),
        (["SOLVER.MAX_ITER", "many"], ["command line", "str", "int"]),
        (["DATASETS.TRAIN", "('nowhere',)"], ["nowhere"]),
        (["MODEL.WEIGHTS", "/no/such/file.pth"], ["/no/such/file.pth: no such file"]),
        (["MODEL.WEIGHTS", "detectron2://R-50.pkl"], ["address"]),
        (["--eval-only"], ["DATASETS.TEST", "nothing to evaluate"]),
        (["--num-machines", "2"], ["--dist-url"]),
        (["--num-gpus", "2", "--machine-rank", "1"], ["--machine-rank 1"]),
        (["SOLVER.IMS_PER_BATCH", "0"], ["IMS_PER_BATCH"]),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "half"], ["SOLVER.AMP.DTYPE"]),
        (["SOLVER.LR_SCHEDULER_NAME", "Linear"], ["LR_SCHEDULER_NAME"]),
    ],
)
def test_mistakes_end_in_one_line(
    run: TinyRun, capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert start(run, *words) == 1
    line = last_line(capsys)
    assert line.startswith("train_net: error: ")
    for part in parts:
        assert part in line


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net.main(["--config-file", "/no/such.yaml"]) == 1
    assert "/no/such.yaml: no such file" in last_line(capsys)


def test_evaluation_needs_weights(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(run, "--eval-only", "DATASETS.TEST", f"('{run.val}',)") == 1
    assert "MODEL.WEIGHTS" in last_line(capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["SOLVER.MAX_ITER", "3", "--resume"],
        ["--resume", "--overwrite"],
        ["--num-gpus", "many"],
    ],
)
def test_wrong_usage_ends_with_code_2(run: TinyRun, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        start(run, *words)
    assert ended.value.code == 2


def test_debug_shows_where_an_expected_error_came_from(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(run, "--debug", "SOLVER.MAX_ITER") == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.splitlines()[-1].startswith("train_net: error: ")


def test_a_bug_shows_its_traceback_and_a_final_line(
    run: TinyRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(train_net, "launch", broken)
    assert start(run) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.splitlines()[-1] == "train_net: error: ZeroDivisionError: by zero"


def test_an_interrupt_has_its_own_code(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_net, "launch", interrupted)
    assert start(run) == 130


def test_a_folder_that_cannot_be_written_is_told_at_once(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.output.write_text("a file")
    assert start(run) == 1
    assert f"OUTPUT_DIR: cannot write to {run.output}" in last_line(capsys)


def test_an_earlier_run_is_continued_or_removed_only_on_demand(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(run) == 0
    first = (run.output / "model_final.pth").read_bytes()
    assert start(run) == 1
    line = last_line(capsys)
    assert "--resume" in line
    assert "--overwrite" in line
    assert (run.output / "model_final.pth").read_bytes() == first
    assert start(run, "--resume", "SOLVER.MAX_ITER", "3") == 0
    assert torch.load(run.output / "model_final.pth")["iteration"] == 2
    (run.output / "notes.txt").write_text("mine")
    assert start(run, "--overwrite", "SOLVER.MAX_ITER", "1") == 0
    assert {path.name for path in run.output.glob("*.pth")} == {"model_final.pth"}
    assert (run.output / "notes.txt").read_text() == "mine"
    metrics = (run.output / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in metrics] == [0]


def test_partial_weights_need_a_pattern(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(run, "SOLVER.MAX_ITER", "1") == 0
    state = torch.load(run.output / "model_final.pth")["model"]
    partial = run.output.with_name("partial.pth")
    kept = {k: v for k, v in state.items() if not k.startswith("roi_heads.box_head")}
    torch.save({"model": kept}, partial)
    words = ["--overwrite", "SOLVER.MAX_ITER", "1", "MODEL.WEIGHTS", str(partial)]
    assert start(run, *words) == 1
    assert "2 missing: roi_heads.box_head.fc1.weight" in last_line(capsys)
    assert start(run, "--allow-partial", "roi_heads.box_head.*", *words) == 0


def test_divergence_stops_and_keeps_no_spoilt_checkpoint(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["SOLVER.BASE_LR", "1e35", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER", "4"]
    assert start(run, *words) == 1
    line = last_line(capsys)
    assert "images" in line
    assert "SOLVER.BASE_LR" in line
    assert not (run.output / "model_final.pth").exists()


def test_a_corrupt_image_is_named(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run.data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    assert start(run, "INPUT.BAD_SAMPLE_POLICY", "raise") == 1
    line = last_line(capsys)
    assert str(run.data / "images") in line


def test_torchrun_resumes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not train_net.parse_arguments([]).resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train_net.parse_arguments([]).resume


def test_output_folder_auto_is_named_after_the_config() -> None:
    cfg = train_net.load_config("", ["OUTPUT_DIR", "output/detic/auto"])
    resolve_output_dir(cfg, "configs/demo/box.yaml")
    assert cfg.OUTPUT_DIR == "output/detic/box"
    resolve_output_dir(cfg, "other.yaml")
    assert cfg.OUTPUT_DIR == "output/detic/box"


def test_removing_a_run_leaves_other_files(tmp_path: Path) -> None:
    ours = ("model_0000001.pth", "model_0000001.pth.json", "metrics.json", "log.txt.rank1")
    for name in (*ours, "pretrained.pth", "notes.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "inference_val").mkdir()
    (tmp_path / "inference_val" / "a.json").write_text("x")
    remove_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pretrained.pth", "notes.json"}


def test_results_file_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    scores = {"AP": 12.345, "AP-group-novel": float("nan"), "AP-cat": 1.0, "AP-group-base": 3}
    results = {"val": {"bbox": scores, "segm": {"AP": 5.0}}}
    content = json.loads(write_results(results, tmp_path).read_text())
    assert content["val"]["bbox"]["AP-group-novel"] is None
    assert content["val"]["bbox"]["AP-cat"] == 1.0


def test_the_tool_stays_small() -> None:
    tool = Path(train_net.__file__)
    assert len(tool.read_text().splitlines()) <= 200
