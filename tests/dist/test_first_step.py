from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.first_step import first_step
from tests.dist.tiny_training import write_run


def test_two_processes_take_the_same_first_step_as_one_with_the_doubled_batch(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path, SOLVER={"IMS_PER_BATCH": 4, "MAX_ITER": 1, "BASE_LR": 0.1})
    one = first_step(run.config_file, tmp_path, processes=1)
    two = first_step(run.config_file, tmp_path, processes=2)
    assert set(one["losses"]) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert all(value > 0 for value in one["losses"].values())
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["updates"] == pytest.approx(one["updates"], rel=1e-3, abs=1e-7)
    assert all(update > 1e-7 for update in one["updates"].values())
