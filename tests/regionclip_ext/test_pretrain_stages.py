"""The parts of a pretraining step are timed, with stored regions and with the RPN."""

from __future__ import annotations

import pytest

from benchmarks import regionclip_stages


def test_table_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert regionclip_stages.main(["--size", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| way | RPN | teacher | captions | student | losses and backward")
    assert [line.split(" | ")[0] for line in lines[3:5]] == [
        "| stored regions",
        "| RPN in the step",
    ]
    assert lines[5].endswith("the same")
