"""NAS-FPN against maps of the Model Garden's and mmdetection's modules (nasfpn_*.npz)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from frozen_backbone_ext.modeling.nasfpn import NasFpn, NasFpnOptions
from frozen_backbone_ext.modeling.nasfpn_graph import LEVELS
from frozen_backbone_ext.modeling.nasfpn_weights import MM_CELLS, from_mmdetection
from frozen_backbone_ext.modeling.part_options import PartOptions
from tests.golden_cases import golden_arrays, golden_root

FILES = sorted(path.name for path in (golden_root() / "frozen_backbone").glob("nasfpn_*.npz"))
INPUTS = ("c3", "c4", "c5")

pytestmark = pytest.mark.golden


def _weights(case: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k[2:]: torch.from_numpy(v) for k, v in case.items() if k.startswith("w.")}


def _options(case: dict[str, np.ndarray]) -> NasFpnOptions:
    options = NasFpnOptions(
        repeats=int(case["repeats"]),
        width=len(case["w.cells.0.0.bn.weight"]),
        merge="sum" if case["sum_only"] else "searched",
        parts=PartOptions(
            "BN", eps=float(case["bn_eps"]), activation="silu" if case["swish"] else "relu"
        ),
    )
    return options.as_mmdetection() if "w.extra.6.conv.weight" in case else options


def _model(case: dict[str, np.ndarray]) -> NasFpn:
    model = NasFpn([case[f"in.{name}"].shape[1] for name in INPUTS], _options(case))
    model.load_state_dict(_with_counters(_weights(case), model))
    return model


def _with_counters(weights: dict[str, torch.Tensor], model: NasFpn) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    assert set(own) == set(weights) | set(counters)
    return weights | counters


def test_golden_files_are_there() -> None:
    assert FILES


@pytest.mark.parametrize("name", FILES)
def test_maps_and_nodes_golden(name: str) -> None:
    case = golden_arrays("frozen_backbone", name)
    model = _model(case).eval()
    features = [torch.from_numpy(case[f"in.{key}"]) for key in INPUTS]
    with torch.no_grad():
        outputs = model(features)
        maps = _inputs(model, features)
        found = {f"node.lateral.{level}": maps[level - 3] for level in (3, 4, 5)}
        for number in range(model.options.repeats):
            nodes, maps = model.nodes(number, maps)
            for cell, node in enumerate(nodes[len(LEVELS) :]):
                found[f"node.cells.{number}.{cell}"] = node
    for key in [key for key in case if key.startswith("node.")]:
        np.testing.assert_allclose(found[key], case[key], atol=5e-5, rtol=0)
    for level, map_ in zip(LEVELS, outputs, strict=True):
        np.testing.assert_allclose(map_, case[f"out.p{level}"], atol=5e-5, rtol=0)


def _inputs(model: NasFpn, features: list[torch.Tensor]) -> list[torch.Tensor]:
    maps = [model.lateral[str(x)](m) for x, m in zip((3, 4, 5), features, strict=True)]
    for level in ("6", "7"):
        top = model.extra[level](maps[-1]) if level in model.extra else maps[-1]
        maps.append(torch.nn.functional.max_pool2d(top, 2, 2))
    return maps


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", FILES)
def test_training_golden(name: str, recompute: bool) -> None:
    case = golden_arrays("frozen_backbone", name)
    if "train.out.p3" not in case:
        assert len(case["in.c3"]) == 1 or "w.extra.6.conv.weight" not in case
        return
    model = _model(case).train()
    model.options = replace(model.options, checkpoint=recompute)
    features = [torch.from_numpy(case[f"in.{key}"]).requires_grad_() for key in INPUTS]
    outputs = model(features)
    total = torch.zeros(())
    for level, map_ in zip(LEVELS, outputs, strict=True):
        expected = case[f"train.out.p{level}"]
        np.testing.assert_allclose(map_.detach(), expected, atol=2e-4, rtol=0)
        total = total + (map_ * torch.from_numpy(case[f"cot.p{level}"])).sum()
    before = model.cells[0][0].bn.running_mean.clone()
    total.backward()
    assert torch.equal(model.cells[0][0].bn.running_mean, before)
    tensors = dict(model.named_parameters()) | dict(zip(INPUTS, features, strict=True))
    for key in [k for k in case if k.startswith("train.grad.")]:
        gradient = tensors[key.removeprefix("train.grad.")].grad
        assert gradient is not None
        largest = np.abs(case[key]).max()
        np.testing.assert_allclose(gradient, case[key], atol=2e-3 * largest, rtol=0)


@pytest.mark.parametrize("name", [name for name in FILES if "_mm_" in name])
def test_mmdetection_names_golden(name: str) -> None:
    case = golden_arrays("frozen_backbone", name)
    stored = {}
    for key, tensor in _weights(case).items():
        part, number, rest = key.split(".", 2)
        if part == "lateral":
            stored[f"neck.lateral_convs.{int(number) - 3}.{rest}"] = tensor
        elif part == "extra":
            stored[f"neck.extra_downsamples.{int(number) - 6}.0.{rest}"] = tensor
        else:
            cell, rest = rest.split(".", 1)
            stored[f"neck.fpn_stages.{number}.{MM_CELLS[int(cell)]}.out_conv.{rest}"] = tensor
    stored["backbone.conv1.weight"] = torch.zeros(1)
    model = NasFpn([case[f"in.{key}"].shape[1] for key in INPUTS], _options(case)).eval()
    model.load_state_dict(_with_counters(from_mmdetection(stored), model))
    with torch.no_grad():
        outputs = model([torch.from_numpy(case[f"in.{key}"]) for key in INPUTS])
    for level, map_ in zip(LEVELS, outputs, strict=True):
        np.testing.assert_allclose(map_, case[f"out.p{level}"], atol=5e-5, rtol=0)
