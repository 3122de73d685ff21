"""A detector over Swin starts from the weights of a classifier, which has no norms of the outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import WeightsError
from ext_common.modeling.swin import SwinTransformer, swin_size
from tests.detic_ext.tiny_model import CENTERNET_OPTS, tiny_model

NORMS = {f"backbone.bottom_up.norm{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")}


def detector() -> nn.Module:
    return tiny_model(
        *CENTERNET_OPTS,
        "MODEL.BACKBONE.NAME", "build_swintransformer_fpn_backbone",
        "MODEL.FPN.IN_FEATURES", "['swin1','swin2','swin3']",
    )  # fmt: skip


def classifier_weights() -> dict[str, torch.Tensor]:
    """What a file of the Swin authors holds."""
    torch.manual_seed(3)
    body = SwinTransformer(size=swin_size("T")).state_dict()
    weights = {name: value for name, value in body.items() if not name.startswith("norm")}
    width = weights["layers.3.blocks.0.norm1.weight"].numel()
    weights |= {"norm.weight": torch.rand(width), "norm.bias": torch.rand(width)}
    weights |= {"head.weight": torch.rand(10, width), "head.bias": torch.rand(10)}
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return weights


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return detector()


def test_no_switch_is_needed_and_the_report_names_what_starts_fresh(
    model: nn.Module, tmp_path: Path
) -> None:
    weights = classifier_weights()
    torch.save({"model": weights}, tmp_path / "swin.pth")
    report = load_model_weights(model, tmp_path / "swin.pth")
    assert report.complete
    assert report.backbone == "backbone.bottom_up."
    assert set(report.permitted) == NORMS
    state = model.state_dict()
    name = "layers.2.blocks.3.attn.qkv.weight"
    assert torch.equal(state[f"backbone.bottom_up.{name}"], weights[name])
    assert all(bool((state[n] == float(n.endswith("weight"))).all()) for n in NORMS)


def test_everything_else_must_be_there(model: nn.Module, tmp_path: Path) -> None:
    weights = classifier_weights()
    del weights["layers.1.blocks.0.norm1.weight"]
    torch.save({"model": weights}, tmp_path / "swin.pth")
    with pytest.raises(WeightsError, match="layers.1.blocks.0.norm1.weight"):
        load_model_weights(model, tmp_path / "swin.pth")
