"""Benchmark cases compute the same in every way, and the harness notices when they do not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks.case import Case, Problem, Variant
from benchmarks.discovery import all_cases, find_cases
from benchmarks.equality import largest_difference
from benchmarks.harness import differences, run_variant
from benchmarks.memory import cpu_peaks
from benchmarks.report import as_table
from ext_common.errors import ConfigError

CPU = torch.device("cpu")
CASES = all_cases()


@pytest.mark.parametrize("name", CASES)
def test_every_way_computes_the_same(name: str) -> None:
    case = CASES[name]
    found = differences(case.tiny, CPU)
    assert {"ours", "naive"} <= set(found)
    assert max(found.values()) <= case.tolerance, found


@pytest.mark.parametrize("name", CASES)
def test_cases_are_found_and_described(name: str) -> None:
    (case,) = find_cases(name)
    assert case.what
    assert len({variant.name for variant in (*case.variants, case.tiny)}) == len(case.variants) + 1
    assert case.variant(case.variants[0].name) is case.variants[0]


def test_unknown_case_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="unknown benchmark case .nope..*fedloss.*image_label"):
        find_cases("nope")


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ({"loss": torch.tensor(2.0)}, 0.0),
        ({"loss": torch.tensor(2.002)}, 1e-3),
        ({"loss": torch.tensor([2.0])}, float("inf")),
        ({"loss": torch.tensor(float("nan"))}, float("inf")),
        ({"cost": torch.tensor(2.0)}, float("inf")),
    ],
)
def test_difference_is_a_share_of_the_largest_magnitude(actual, expected: float) -> None:
    found = largest_difference(actual, {"loss": torch.tensor(2.0)})
    assert found == pytest.approx(expected, rel=1e-3)


def _problem(device: torch.device, error: float) -> Problem:
    value = torch.ones(3, device=device)
    return Problem({"ours": lambda: {"x": value + error}, "naive": lambda: {"x": value}})


def _case(error: float, target: float | None = None) -> Case:
    size = Variant("small", partial(_problem, error=error), target)
    return Case("fake", "a fake", (size,), Variant("tiny", size.build))


def test_what_is_compared_may_differ_from_what_is_timed() -> None:
    timed, exact = partial(_problem, error=1e-3), partial(_problem, error=0.0)
    assert differences(Variant("rounded", timed), CPU)["ours"] > 1e-4
    assert differences(Variant("exact", timed, compared=exact), CPU)["ours"] == 0.0


def test_a_wrong_result_and_a_missed_target_show_in_the_table() -> None:
    case = _case(error=1e-3, target=1e9)
    rows = run_variant(case, case.variants[0], device=CPU, warmup=0, repeat=2, with_memory=False)
    ours, naive = rows
    assert not ours.equal
    assert not ours.reached
    assert naive.equal
    assert naive.times_faster_than_naive == 1.0
    table = as_table(rows)
    assert "NOT EQUAL" in table
    assert "MISSED" in table


@pytest.mark.parametrize(
    ("case", "options", "code"),
    [
        (_case(error=0.0), [], 0),
        (_case(error=1e-3), [], 1),
        (_case(error=0.0, target=1e9), [], 0),
        (_case(error=0.0, target=1e9), ["--check"], 1),
    ],
)
def test_exit_code(case: Case, options: list[str], code: int, monkeypatch) -> None:
    monkeypatch.setattr(command, "find_cases", lambda name: [case])
    assert command.main(["fake", "--repeat", "1", "--no-memory", *options]) == code


def test_command_writes_a_table_and_json(tmp_path: Path, capsys) -> None:
    path = tmp_path / "deep" / "result.json"
    arguments = ["fedloss", "--variant", "tiny", "--repeat", "2", "--no-memory"]
    assert command.main([*arguments, "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert written["machine"]["threads"] == 1
    ways = [row["implementation"] for row in written["results"]]
    assert ways[:2] == ["ours", "naive"]
    assert all(row["median_ms"] >= row["min_ms"] > 0 for row in written["results"])
    assert "| fedloss | tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["nope"], ["fedloss", "--variant", "nope"]], ids=["case", "size"]
)
def test_wrong_names_end_in_one_line(arguments: list[str], capsys) -> None:
    assert command.main(arguments) == 2
    message = capsys.readouterr().err
    assert "nope" in message
    assert message.count("\n") == 1


def test_list(capsys) -> None:
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CASES)
    assert "target 50x" in printed


def test_peak_memory_grows_with_what_a_way_allocates() -> None:
    """22,047 columns of 512 regions are 45 MB for the logits alone."""
    peaks = cpu_peaks("fedloss", "22047")
    if not Path("/proc/self/clear_refs").exists():
        assert peaks == {}  # only Linux tells
        return
    assert set(peaks) == {"ours", "naive", "dynamic"}
    assert peaks["naive"] > 100e6
    assert 0 < peaks["ours"] < 30e6
