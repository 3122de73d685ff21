"""One whole step of the three models against the numbers of the original code."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.momentum import momentum_at
from soco_ext.solver.lars import LARS, lars_groups
from tests.golden_cases import golden_arrays, golden_root
from tests.soco_ext.golden_model import build_golden_model, golden_batch

pytestmark = pytest.mark.golden
FILES = sorted(path.name for path in (golden_root() / "soco").glob("model_*.npz"))
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# relative L2 per array: (outputs and statistics, gradients and weights after the step)
TOLERANCES = {"float32": (1e-4, 1e-2), "float64": (1e-6, 1e-6)}


def distance(actual: Any, expected: Any) -> float:
    """Relative L2."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))


class Recorder:
    """Outputs of the networks, call by call."""

    def __init__(self, model: ContrastiveModel) -> None:
        # of the C4 model: what goes into the online projector
        self.calls: dict[str, list[Any]] = {"encoder_vec": []}
        for name, part in model.named_children():
            self.calls[name] = []
            part.register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def keep(_module: Any, inputs: Any, output: Any) -> None:
            self.calls[name].append(output)
            if name == "projector":
                self.calls["encoder_vec"].append(inputs[0])

        return keep

    def rows(self, name: str, like: np.ndarray) -> np.ndarray:
        """All rows in the shape (calls, rows of a call, width) of the recorded array."""
        found: Tensor = torch.cat(self.calls[name]).detach()
        return found.view(like.shape).numpy()


@pytest.fixture(scope="module", params=[(f, d) for f in FILES for d in DTYPES], ids="-".join)
def step(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Forward, backward and EMA; everything that the file records."""
    torch.set_num_threads(1)
    name, dtype_name = request.param
    arrays = golden_arrays("soco", name)
    model = build_golden_model(arrays, DTYPES[dtype_name])
    batch = golden_batch(arrays, DTYPES[dtype_name])
    recorder = Recorder(model)
    terms = model.directed_terms(batch)
    torch.stack(terms).sum().backward()
    return {
        "arrays": arrays,
        "model": model,
        "batch": batch,
        "terms": terms,
        "recorder": recorder,
        "tolerance": TOLERANCES[dtype_name],
    }


def test_golden_files_are_there() -> None:
    assert FILES


def test_golden_losses(step: dict[str, Any]) -> None:
    arrays = step["arrays"]
    terms = [float(term) for term in step["terms"]]
    assert distance(terms, arrays["out/loss_terms"]) < step["tolerance"][0]
    assert sum(terms) == pytest.approx(float(arrays["out/loss"]), rel=step["tolerance"][0])


def test_golden_outputs_of_the_networks(step: dict[str, Any]) -> None:
    arrays, recorder = step["arrays"], step["recorder"]
    compared = 0
    for key in arrays:
        if match := re.fullmatch(r"out/(\w+)_calls", key):
            actual = recorder.rows(match[1], arrays[key])
        elif match := re.fullmatch(r"out/fpn_view(\d)_p(\d)", key):
            actual = recorder.calls["neck"][int(match[1]) - 1][int(match[2]) - 2].detach().numpy()
        else:
            continue
        assert distance(actual, arrays[key]) < step["tolerance"][0], key
        compared += 1
    assert compared >= 3


def test_golden_target_and_statistics_after_the_step(step: dict[str, Any]) -> None:
    arrays, model = step["arrays"], step["model"]
    state = model.state_dict()
    for key in (key for key in arrays if key.startswith("after/")):
        assert distance(state[key[6:]].numpy(), arrays[key]) < step["tolerance"][0], key
    before = int(arrays["out/ema_k_before"])
    assert model.ema_step == before + 1
    used = momentum_at(before, model.momentum.steps, model.momentum.base)
    assert used == pytest.approx(float(arrays["out/ema_momentum_used"]), rel=1e-12)


def test_golden_gradients(step: dict[str, Any]) -> None:
    arrays, model = step["arrays"], step["model"]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = [str(name) for name in arrays["grad/names"]]
    assert set(gradients) == set(names)
    norms = [float(gradients[name].norm()) for name in names]
    assert distance(norms, arrays["grad/norms"]) < step["tolerance"][1]
    for key in (key for key in arrays if key.startswith("grad/") and key[5:] in gradients):
        assert distance(gradients[key[5:]].numpy(), arrays[key]) < step["tolerance"][1], key


def test_golden_lars_step(step: dict[str, Any]) -> None:
    arrays, model = step["arrays"], step["model"]
    lr, momentum, decay, trust, eps = map(float, arrays["lars/hyper_lr_momentum_wd_trust_eps"])
    groups = lars_groups(model, weight_decay=decay)
    plain = {id(p) for p in groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in plain}
    assert names == {str(name) for name in arrays["lars/no_decay_names"]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    LARS(groups, lr=lr, momentum=momentum, trust=trust, eps=eps).step()
    after = dict(model.named_parameters())
    try:
        for key in arrays:
            if key.startswith("lars/") and key[5:] in after:
                actual = after[key[5:]].detach().numpy()
                assert distance(actual, arrays[key]) < step["tolerance"][1], key
    finally:
        with torch.no_grad():
            for name, value in before.items():
                after[name].copy_(value)
