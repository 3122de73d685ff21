"""Two processes with half of the images each, and one with all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.soco_ext.step_in_processes import CASES, step_of_all_cases

SYNCHRONISED = [case for case in CASES if case != "own statistics"]
States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[States, States]:
    """The states after one step of one process, and of two."""
    folder = tmp_path_factory.mktemp("processes")
    return step_of_all_cases(folder, 1), step_of_all_cases(folder, 2)


@pytest.mark.parametrize("case", SYNCHRONISED)
def test_synchronised_norms_make_two_processes_one(
    states: tuple[States, States], case: str
) -> None:
    """Weights, target weights and running statistics after the step."""
    one, two = (found[case] for found in states)
    assert one.keys() == two.keys()
    assert any("_k.bn1.running_var" in name for name in one)
    for name, value in one.items():
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-6} if name == "loss" else {"rtol": 1e-8, "atol": 1e-10}
        )
        torch.testing.assert_close(two[name], value, **tolerance, msg=name)


def test_plain_norms_do_not(states: tuple[States, States]) -> None:
    one, two = (found["own statistics"] for found in states)
    name = "projector.bn1.running_mean"
    assert not torch.allclose(one[name], two[name], rtol=1e-3)
