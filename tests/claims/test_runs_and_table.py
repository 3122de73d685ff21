"""Steps, their resumption and failures, and the table over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.claims.runs import Runner, Step, StepError, keep_settings, training
from benchmarks.claims.table import markdown_table, read_box_scores
from ext_common.errors import DatasetError


def test_stopped_training_goes_on_and_a_new_one_starts(tmp_path: Path) -> None:
    new = training("t", "claims/SoCo_finetune.yaml", tmp_path, ["SEED", 3], ["model_final.pth"])
    assert "--overwrite" in new.words
    assert new.words[-2:] == ("SEED", "3")
    assert not new.is_finished()
    (tmp_path / "last_checkpoint").write_text("model_0000059.pth")
    begun = training("t", "claims/SoCo_finetune.yaml", tmp_path, [], ["model_final.pth"])
    assert "--resume" in begun.words
    assert "--overwrite" not in begun.words
    (tmp_path / "model_final.pth").touch()
    assert begun.is_finished()


def test_failure_names_the_step_and_its_log_and_stops_the_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Step("bad one", "no_such_tool", (), (tmp_path / "never",))
    (tmp_path / "there").touch()
    done = Step("done one", "no_such_tool", (), (tmp_path / "there",))
    with pytest.raises(StepError, match=r"bad one ended with exit code 2.*bad-one\.log"):
        Runner(tmp_path / "logs", 2, 4).run_chains([[bad, done], [done]])
    assert "no_such_tool.py" in (tmp_path / "logs" / "bad-one.log").read_text()
    out = capsys.readouterr().out
    assert out.count("finished before") == 1
    assert "[1/4] done one" in out


def test_settings_of_a_folder_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "new" / "settings.json"
    keep_settings(path, {"steps": 3, "opts": ("A", "1")})
    keep_settings(path, {"steps": 3, "opts": ("A", "1")})
    with pytest.raises(StepError, match="other settings: steps"):
        keep_settings(path, {"steps": 4, "opts": ("A", "1")})


def test_table_has_mean_and_sample_deviation() -> None:
    rows = {"a": [{"AP": 1.0}, {"AP": 3.0}], "b": [{"AP": 7.25}]}
    assert markdown_table(rows, ["AP"]).splitlines() == [
        "| | AP | seeds |",
        "|---|---:|---:|",
        "| a | 2.0 ± 1.4 | 2 |",
        "| b | 7.2 | 1 |",
    ]


def test_scores_are_found_in_nested_results(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"val": {"bbox": {"AP": 2.5, "AP50": float("nan")}, "segm": {}}}))
    assert read_box_scores(path) == {"AP": 2.5, "AP50": 0.0}
    path.write_text(json.dumps({"val": {"segm": {"AP": 2.5}}}))
    with pytest.raises(DatasetError, match="no results of boxes"):
        read_box_scores(path)
