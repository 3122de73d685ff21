"""Gradient accumulation with several processes: the mean of all batches, exchanged once."""

from __future__ import annotations

import json
from pathlib import Path

from ext_common.launch import launch
from tests.dist.worker_mains import arguments
from tests.ext_common.accumulation_worker import train


def test_two_processes_with_two_batches_make_the_step_of_four(tmp_path: Path) -> None:
    launch(train, arguments(2, folder=str(tmp_path)), device="cpu")
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["loss"] for one in seen] == [[1.5], [3.5]]
    for one in seen:
        # gradients of the mean of 1 a + 2 b + 3 a + 4 b
        assert one["heads"] == [1 - (2 + 4) / 4, 1 - (1 + 3) / 4]
        assert one["third"] == 1 - 10 / 4
        assert one["without_exchange"] == 1  # of two batches
