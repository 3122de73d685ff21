"""The table of the loader's stages."""

from __future__ import annotations

import sys

import pytest

from benchmarks import view_shares
from soco_ext.data.view_options import PLANS


def test_table_has_a_row_per_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["view_shares", "--images", "1", "--rounds", "1"])
    view_shares.main()
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split()[0] for row in rows] == list(PLANS)
    for stage in ("decoding", "boxes", "crop, resize, flip", "colour", "to array"):
        assert stage in head
    for row in rows:
        shares = [int(word.rstrip("%")) for word in row.split() if word.endswith("%")]
        assert len(shares) == 5
        assert 97 <= sum(shares) <= 103
