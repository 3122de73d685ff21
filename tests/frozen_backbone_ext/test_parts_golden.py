"""Adapters, folding and class-balanced losses against the golden numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from ext_common.data.sampling import repeat_factors
from frozen_backbone_ext.losses.class_balanced import (
    ClassBalancedSigmoid,
    ClassBalancedSoftmax,
    class_balanced_weights,
    effective_numbers,
)
from frozen_backbone_ext.modeling.adapters import add_adapter, fold_adapters
from frozen_backbone_ext.modeling.bn_folding import fold_convolution, folded_copy, frozen_affine
from tests.golden_cases import golden_arrays

pytestmark = pytest.mark.golden

ADAPTERS = golden_arrays("frozen_backbone", "residual_adapters.npz")
BALANCED = golden_arrays("frozen_backbone", "class_balanced.npz")
FOLDING = golden_arrays("frozen_backbone", "bn_folding.npz")
REPEATS = golden_arrays("frozen_backbone", "repeat_factors.npz")
SINGLE = sorted({".".join(k.split(".")[:2]) for k in ADAPTERS if not k.startswith("bottleneck")})
BLOCKS = sorted({".".join(k.split(".")[:2]) for k in ADAPTERS if k.startswith("bottleneck")})
EPS = 1e-5


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _norm(arrays: dict[str, np.ndarray], name: str, eps: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(arrays[f"{name}.weight"]), eps=eps)
    with torch.no_grad():
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, part).copy_(_tensor(arrays[f"{name}.{part}"]))
    return norm.eval()


def _conv(weight: np.ndarray, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    outputs, inputs, side, _ = weight.shape
    conv = nn.Conv2d(
        inputs * groups,
        outputs,
        side,
        stride=stride,
        padding=side // 2,
        groups=groups,
        bias=False,
    )
    conv.weight = nn.Parameter(_tensor(weight), requires_grad=False)
    return conv


@pytest.mark.parametrize("case", SINGLE)
def test_adapter_golden(case: str) -> None:
    arrays = {k.removeprefix(f"{case}."): v for k, v in ADAPTERS.items() if k.startswith(case)}
    conv = _conv(arrays["conv3x3.weight"], stride=int(case[-1]))
    adapter = add_adapter(conv, case.split(".")[0])
    adapter.conv1x1.weight = nn.Parameter(_tensor(arrays["adapter.conv1x1.weight"]))
    if adapter.bn is not None:
        adapter.bn = _norm(arrays, "adapter.bn", EPS)
    norm = _norm(arrays, "bn", EPS)
    image = _tensor(arrays["in"]).requires_grad_()
    out = norm(conv(image))
    np.testing.assert_allclose(out.detach(), arrays["out"], atol=1e-4, rtol=0)
    (out * _tensor(arrays["cot"])).sum().backward()
    for key, tensor in (("in", image), ("adapter.conv1x1.weight", adapter.conv1x1.weight)):
        assert tensor.grad is not None
        largest = np.abs(arrays[f"grad.{key}"]).max()
        np.testing.assert_allclose(tensor.grad, arrays[f"grad.{key}"], atol=1e-4 * largest)
    if adapter.form == "parallel":
        model = nn.Sequential(conv, norm)
        assert fold_adapters(model) == 1
        assert set(conv.state_dict()) == {"weight"}
        with torch.no_grad():
            np.testing.assert_allclose(model(image), arrays["out"], atol=1e-4, rtol=0)


class _Block(nn.Module):
    """A bottleneck with torchvision's names."""

    def __init__(self, arrays: dict[str, np.ndarray], stride: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            own_stride = stride if number == 2 else 1
            self.add_module(f"conv{number}", _conv(arrays[f"conv{number}.weight"], own_stride))
            self.add_module(f"bn{number}", _norm(arrays, f"bn{number}", EPS))
        self.shortcut = nn.Sequential()
        if "downsample.0.weight" in arrays:
            self.shortcut.append(_conv(arrays["downsample.0.weight"], stride))
            self.shortcut.append(_norm(arrays, "downsample.1", EPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + self.shortcut(x)).relu()


@pytest.mark.parametrize("case", BLOCKS)
def test_adapter_in_a_bottleneck_golden(case: str) -> None:
    arrays = {k.removeprefix(f"{case}."): v for k, v in ADAPTERS.items() if k.startswith(case)}
    block = _Block(arrays, stride=int(case[-1]))
    image = _tensor(arrays["in"])
    with torch.no_grad():
        plain = block(image)
        adapter = add_adapter(block.conv2)
        assert torch.equal(block(image), plain)
        np.testing.assert_allclose(plain, arrays["out_no_adapter"], atol=1e-4, rtol=0)
        key = next(k for k in arrays if "adapter" in k and k.endswith("weight"))
        adapter.conv1x1.weight.copy_(_tensor(arrays[key]))
        np.testing.assert_allclose(block(image), arrays["out"], atol=1e-4, rtol=0)
        fold_adapters(block)
        np.testing.assert_allclose(block(image), arrays["out"], atol=1e-4, rtol=0)


def test_bn_folding_golden() -> None:
    weight = FOLDING["conv.weight"]
    groups = int(FOLDING["groups"])
    conv = _conv(weight, stride=2, groups=groups)
    norm = _norm(FOLDING, "bn", float(FOLDING["bn_eps"]))
    image = _tensor(FOLDING["in"])
    network = nn.Sequential(conv, norm).eval()
    copied, count = folded_copy(network, image)
    assert count == 1
    scale, shift = frozen_affine(norm)
    fold_convolution(conv, norm)
    pairs = {
        "folded.weight": conv.weight,
        "folded.bias": conv.bias,
        "frozen_affine.scale": scale,
        "frozen_affine.shift": shift,
        "out": copied(image),
    }
    for key, tensor in pairs.items():
        assert tensor is not None
        largest = np.abs(FOLDING[key]).max()
        np.testing.assert_allclose(tensor.detach(), FOLDING[key], atol=1e-5 * largest, rtol=0)


def _betas() -> list[tuple[str, float]]:
    return [(f"b{i}", float(beta)) for i, beta in enumerate(BALANCED["betas"].tolist())]


@pytest.mark.parametrize(("key", "beta"), _betas(), ids=[key for key, _ in _betas()])
def test_class_balanced_golden(key: str, beta: float) -> None:
    # the file holds beta in float32, the numbers come from the short decimal
    beta = float(np.format_float_positional(np.float32(beta), unique=True))
    counts, logits = _tensor(BALANCED["num_per_class"]), _tensor(BALANCED["logits"])
    labels = _tensor(BALANCED["labels"]).long()
    weights = class_balanced_weights(counts, beta)
    foreground = labels < len(counts)
    sigmoid, focal = (
        ClassBalancedSigmoid(weights, "none"),
        ClassBalancedSigmoid(weights, "sum", gamma=2.0),
    )
    per_sample = sigmoid(logits[:, :-1], labels)
    found = {
        "effective_num": effective_numbers(counts, beta),
        "weights_unnorm": class_balanced_weights(counts, beta, normalise=False),
        "weights": weights,
        "softmax_ce.per_sample": ClassBalancedSoftmax(weights, "none")(logits, labels),
        "softmax_ce.mean_over_n": ClassBalancedSoftmax(weights, "mean")(logits, labels),
        "softmax_ce.mean_over_weights": ClassBalancedSoftmax(weights, "weighted_mean")(
            logits, labels
        ),
        "sigmoid_bce.per_sample": per_sample,
        "sigmoid_bce.sum_over_n": per_sample.sum() / len(labels),
        "focal_g2.sum_over_npos": focal(logits[foreground][:, :-1], labels[foreground])
        / foreground.sum(),
    }
    expected = {k.removeprefix(f"{key}."): v for k, v in BALANCED.items() if k.startswith(key)}
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, err_msg=name)


def test_repeat_factors_golden() -> None:
    labels = [np.flatnonzero(row).tolist() for row in REPEATS["presence"]]
    keys = sorted(k for k in REPEATS if re.fullmatch(r"t\d+\.image_repeat", k))
    assert len(keys) == len(REPEATS["thresholds"])
    for key, threshold in zip(keys, REPEATS["thresholds"].tolist(), strict=True):
        np.testing.assert_allclose(repeat_factors(labels, threshold), REPEATS[key], rtol=1e-5)
        plain = repeat_factors(labels, threshold, root=False)
        np.testing.assert_allclose(plain, REPEATS[f"{key}_nosqrt"], rtol=1e-5)
