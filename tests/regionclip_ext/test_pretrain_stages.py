"""The parts of a pretraining step and of zero-shot inference are timed, in every way."""

from __future__ import annotations

import re

import pytest

from benchmarks import regionclip_detector, regionclip_stages


def _share(line: str) -> float:
    """Sum of the percents of a row but the last (all)."""
    return sum(int(percent) for percent in re.findall(r"\((\d+)%\)", line)[:-1])


def test_table_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert regionclip_stages.main(["--size", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| way | " + " | ".join(regionclip_stages.PARTS) + " | left | all")
    assert [line.split(" | ")[0] for line in lines[3:7]] == [
        "| plain",
        "| ours, RPN in the step",
        "| ours, stored regions",
        "| the same, nothing shared",
    ]
    assert all(90 < _share(line) < 110 for line in lines[3:7])
    assert float(lines[7].split()[3]) < 2e-3  # as the case regionclip_step allows
    assert lines[8].endswith("the same")


def test_zero_shot_table_has_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--zero-shot", "--size", "tiny", "--classes", "30", "60"]
    assert regionclip_stages.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    head = "| 60 classes | " + " | ".join(regionclip_detector.STAGES) + " | left | all"
    (at,) = (number for number, line in enumerate(lines) if line.startswith(head))
    plain, ours, difference, candidates = lines[at + 2 : at + 6]
    assert (plain.split(" | ")[0], ours.split(" | ")[0]) == ("| plain", "| ours")
    assert all(90 < _share(line) < 110 for line in (plain, ours))
    assert float(difference.split()[3]) < 1e-3
    assert re.match(r"20 regions, \d+ candidates", candidates)
