"""Adapters: bit-equal at first, trained alone, folded away, and built by any builder."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model as build_plain_model
from torch import nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.adapters import (
    Adapter,
    adapt_stages,
    fold_adapters,
    stage_modules,
)
from frozen_backbone_ext.modeling.freezing import freeze_trunk
from frozen_backbone_ext.modeling.trunk import find_trunk, trunk_hash
from tests.frozen_backbone_ext.test_freezing import _timm
from tests.frozen_backbone_ext.tiny_frozen import (
    frozen_config,
    frozen_model,
    train_steps,
    trained_looking,
)

ADAPTED = {
    "MODEL.BACKBONE.NAME": "build_adapted_backbone",
    "MODEL.ADAPTERS.BACKBONE": "build_resnet_fpn_backbone",
}


def _trunk(norm: str) -> nn.Module:
    changes = {"MODEL.BACKBONE_FREEZE.POLICY": "", "MODEL.RESNETS.NORM": norm}
    return find_trunk(frozen_model(changes))[1]


@pytest.mark.parametrize("form", ["parallel", "series"])
@pytest.mark.parametrize("norm", ["frozen", "affine", "own"])
@pytest.mark.parametrize("kind", ["BN", "FrozenBN"])
def test_the_first_forward_is_that_of_the_frozen_network(form: str, norm: str, kind: str) -> None:
    trunk = _trunk(kind)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = trunk.eval()(images)
    adapters = adapt_stages(trunk, form=form, norm=norm)
    assert len(adapters) == 16
    frozen = freeze_trunk(trunk)
    frozen.eval()
    for maps in (frozen(images),):
        assert all(torch.equal(maps[key], expected[key]) for key in expected)
        assert all(map_.requires_grad for map_ in maps.values())
    frozen.train()
    if norm != "own" and form == "parallel":
        maps = frozen(images)
        assert all(torch.equal(maps[key], expected[key]) for key in expected)
    sum(map_.sum() for map_ in frozen(images).values()).backward()
    trained = {name for name, p in frozen.named_parameters() if p.grad is not None}
    assert trained
    assert all("adapter" in name for name in trained)
    needs = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == needs


def test_training_moves_adapters_only_and_folding_keeps_the_maps() -> None:
    for norm in ("frozen", "affine", "own"):
        model = frozen_model({**ADAPTED, "MODEL.ADAPTERS.NORM": norm})
        trunk = find_trunk(model)[1]
        before = trunk_hash(trunk)
        train_steps(model)
        assert trunk_hash(trunk) == before
        assert any(m.conv1x1.weight.abs().max() > 0 for m in trunk.modules() if _is(m))
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = trunk.eval()(images)
            assert fold_adapters(trunk) == 16
            assert not any(_is(m) for m in trunk.modules())
            maps = trunk(images)
            for key, map_ in maps.items():
                torch.testing.assert_close(map_, expected[key], atol=1e-4, rtol=1e-4)
        plain = find_trunk(frozen_model())[1]
        assert set(trunk.state_dict()) == set(plain.state_dict())


def _is(module: nn.Module) -> bool:
    return isinstance(module, Adapter)


def test_chosen_stages_leave_the_earlier_ones_without_graph() -> None:
    trunk = _trunk("FrozenBN")
    adapters = adapt_stages(trunk, ("res5",))
    assert len(adapters) == 3
    frozen = freeze_trunk(trunk).train()
    maps = frozen(torch.randn(1, 3, 64, 64))
    assert [map_.requires_grad for map_ in maps.values()] == [False, False, True]
    timm_trunk = _timm("resnetrs50", (4, 5))
    assert len(adapt_stages(timm_trunk, ("layer4",), norm="own")) == 3


def test_weights_of_the_plain_backbone_start_an_adapted_model(tmp_path: object) -> None:
    changes = {**ADAPTED, "MODEL.ADAPTERS.NORM": "own"}
    source = frozen_model()
    path = f"{tmp_path}/trunk.pth"
    torch.save(dict(find_trunk(source)[1].state_dict()), path)
    model = frozen_model(changes, seed=3)
    load_model_weights(model, path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = find_trunk(source)[1](images)
        maps = find_trunk(model)[1].eval()(images)
    assert all(torch.equal(maps[key], expected[key]) for key in expected)
    train_steps(model, 1)
    # detectron2's builder makes the same network, so DefaultPredictor can load it
    plain = build_plain_model(frozen_config(changes))
    plain.load_state_dict(model.state_dict())
    picture = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    with torch.no_grad():
        ours, theirs = (m.eval()(picture)[0]["instances"] for m in (model, plain))
    assert torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.ADAPTERS.STAGES": "('res6',)"}, "res6 in ResNet, whose stages are res2"),
        ({"MODEL.ADAPTERS.FORM": "both"}, "unknown form 'both'"),
        ({"MODEL.ADAPTERS.NORM": "none"}, "unknown norm 'none'"),
        ({"MODEL.ADAPTERS.BACKBONE": ""}, "no backbone builder ''"),
        ({"MODEL.ADAPTERS.BACKBONE": "build_adapted_backbone"}, "no backbone builder"),
    ],
    ids=["stage", "form", "norm", "builder", "itself"],
)
def test_impossible_adapters_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frozen_model({**ADAPTED, **changes})


@pytest.mark.parametrize("form", ["series", "parallel"])
def test_efficientnets_have_them_at_the_end_of_their_blocks(form: str) -> None:
    trunk = _timm("tf_efficientnet_b0", (3, 4, 5), drop_path_rate=0.3)
    trained_looking(trunk)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = trunk.eval()(images)
    names = set(trunk.state_dict())
    assert set(stage_modules(trunk)) == {f"blocks.{number}" for number in range(7)}
    adapters = adapt_stages(trunk, form=form)
    assert len(adapters) == 16
    assert names <= set(trunk.state_dict())
    outputs = [block.conv1x1.out_channels for block in adapters]
    assert outputs == sorted(outputs)
    frozen = freeze_trunk(trunk).train()
    for _ in range(2):
        maps = frozen(images)
        assert all(torch.equal(maps[key], expected[key]) for key in expected)
    sum(map_.sum() for map_ in maps.values()).backward()
    trained = {name for name, p in frozen.named_parameters() if p.grad is not None}
    assert trained
    assert all("adapter" in name for name in trained)
    with pytest.raises(ConfigError, match="'own' after a BatchNormAct2d"):
        adapt_stages(_timm("tf_efficientnet_b0", (3,)), form=form, norm="own")
    if form == "parallel":
        for adapter in adapters:
            nn.init.normal_(adapter.conv1x1.weight, std=0.01)
        with torch.no_grad():
            expected = frozen.eval()(images)
            assert fold_adapters(frozen) == 16
            for key, map_ in frozen(images).items():
                torch.testing.assert_close(map_, expected[key], atol=1e-4, rtol=1e-4)
        assert set(frozen.state_dict()) == names


def test_backbones_without_conv2_are_refused() -> None:
    with pytest.raises(ConfigError, match="not those of a ResNet or EfficientNet"):
        adapt_stages(_timm("convnext_atto", (1, 2)))
    series = copy.deepcopy(_trunk("BN"))
    adapt_stages(series, ("res5",), form="series")
    with pytest.raises(ConfigError, match="series adapter cannot be folded"):
        fold_adapters(series)
