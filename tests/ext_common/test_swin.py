"""Swin backbones: golden outputs, published key names, a plain twin, any image size, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.config import get_config
from ext_common.errors import ConfigError
from ext_common.modeling.swin import SwinSize, SwinTransformer, swin_size
from ext_common.modeling.swin_blocks import SwinBlock, shifted_window_mask
from tests.golden_cases import golden_arrays

TINY = SwinSize(8, (2, 2, 2, 2), (1, 2, 2, 4), window=4)
# channels of the stages, blocks of the third, window, drop path (detic spec 1.1)
PUBLISHED = {
    "T": ([96, 192, 384, 768], 6, 7, 0.2),
    "S": ([96, 192, 384, 768], 18, 7, 0.2),
    "B": ([128, 256, 512, 1024], 18, 7, 0.3),
    "B-22k": ([128, 256, 512, 1024], 18, 7, 0.3),
    "B-22k-384": ([128, 256, 512, 1024], 18, 12, 0.3),
    "L-22k": ([192, 384, 768, 1536], 18, 7, 0.3),
    "L-22k-384": ([192, 384, 768, 1536], 18, 12, 0.3),
}


def config(backbone: str = "build_swintransformer_backbone", **options: object) -> CfgNode:
    cfg = get_config()
    cfg.MODEL.BACKBONE.NAME = backbone
    for key, value in options.items():
        setattr(cfg.MODEL.SWIN, key, value)
    return cfg


def tiny(**options: object) -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(size=TINY, **options)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # not the identity, so that a lost one shows
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model.eval()


# --- golden and published keys ----------------------------------------------------------------


@pytest.mark.golden
def test_golden_swin() -> None:
    arrays = golden_arrays("detic", "swin_tiny.npz")
    cfg = json.loads(str(arrays["cfg"]))
    size = SwinSize(
        cfg["embed_dim"], tuple(cfg["depths"]), tuple(cfg["num_heads"]), cfg["window_size"]
    )
    model = SwinTransformer(size=size, out_features=cfg["out_indices"]).eval()
    model.load_state_dict(
        {k[3:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("sd/")}
    )
    outputs = model(torch.from_numpy(arrays["x"]))
    assert list(outputs) == [f"swin{index}" for index in cfg["out_indices"]]
    for name, features in outputs.items():
        expected = torch.from_numpy(arrays[f"out/{name}"])
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert model.output_shape()[name].channels == expected.shape[1]


def test_keys_are_those_of_the_published_checkpoint() -> None:
    # not through GOLDEN_ROOT: the published names do not vary
    path = Path(__file__).parents[1] / "golden" / "detic" / "state_dict_SwinB.json"
    published = {
        key.removeprefix("backbone."): tuple(shape)
        for key, shape in json.loads(path.read_text()).items()
        if key.startswith("backbone.")
    }
    cfg = config("build_swintransformer_fpn_backbone", SIZE="B-22k")
    cfg.MODEL.FPN.IN_FEATURES = ["swin1", "swin2", "swin3"]
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert {k: tuple(v.shape) for k, v in backbone.state_dict().items()} == published
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name) -> None:
    channels, depth, window, drop_path = PUBLISHED[name]
    with torch.device("meta"):
        model = build_backbone(config(SIZE=name, OUT_FEATURES=(0, 1, 2, 3)))
    shapes = model.output_shape()
    assert [shape.channels for shape in shapes.values()] == channels
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 32]
    assert [len(stage.blocks) for stage in model.layers] == [2, 2, depth, 2]
    head_widths = {block.attn.dim // block.attn.num_heads for block in _blocks(model)}
    assert head_widths == {32}
    assert {block.window for block in _blocks(model)} == {window}
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    assert len(table) == (2 * window - 1) ** 2
    assert _blocks(model)[-1].mlp.fc1.out_features == 4 * channels[-1]
    rates = [
        b.drop_path.drop_prob if isinstance(b.drop_path, DropPath) else 0 for b in _blocks(model)
    ]
    expected = [drop_path * i / (len(rates) - 1) for i in range(len(rates))]
    assert rates == pytest.approx(expected)


def _blocks(model: nn.Module) -> list[SwinBlock]:
    return [module for module in model.modules() if isinstance(module, SwinBlock)]


def test_start_values() -> None:
    for name, parameter in SwinTransformer(size=swin_size("T")).named_parameters():
        if "norm" in name:
            assert torch.all(parameter == (1 if name.endswith("weight") else 0)), name
        elif name.endswith(("qkv.weight", "fc1.weight", "reduction.weight", "bias_table")):
            assert 0.018 < float(parameter.detach().std()) < 0.022, name
        elif name.endswith("bias") and "patch_embed" not in name:
            assert not parameter.any(), name


# --- against a plain twin ---------------------------------------------------------------------


def token_attention(block: SwinBlock, x_NHWC: Tensor) -> Tensor:
    """Attention of a block, token by token: who is whose neighbour is decided in plain Python."""
    attn, window, shift = block.attn, block.window, block.shift
    count, height, width, channels = x_NHWC.shape
    padded = F.pad(x_NHWC, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = padded.shape[1:3]
    heads = attn.num_heads
    q, k, v = attn.qkv(padded).reshape(count, rows, columns, 3, heads, -1).unbind(3)
    result = torch.zeros_like(padded)

    def window_of(y: int, x: int) -> tuple[int, int]:
        # what is cut off on one side is not joined with the other side
        return (y - shift) // window, (x - shift) // window

    places = [(y, x) for y in range(rows) for x in range(columns)]
    for y, x in places:
        near = [place for place in places if window_of(*place) == window_of(y, x)]
        bias = torch.stack(
            [
                attn.relative_position_bias_table[
                    (y - j + window - 1) * (2 * window - 1) + (x - i + window - 1)
                ]
                for j, i in near
            ]
        )
        keys = torch.stack([k[:, j, i] for j, i in near], dim=1)
        values = torch.stack([v[:, j, i] for j, i in near], dim=1)
        logits = (q[:, None, y, x] * keys).sum(-1) * attn.scale + bias
        result[:, y, x] = (logits.softmax(1)[..., None] * values).sum(1).flatten(1)
    return attn.proj(result)[:, :height, :width]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 4), (3, 9)])
@pytest.mark.parametrize(("window", "shift"), [(4, 0), (4, 2), (3, 1)])
def test_attention_reaches_its_window_only(window, shift, size) -> None:
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window=window, shift=shift).eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    nn.init.normal_(block.attn.qkv.bias)
    x_NHWC = torch.randn(2, *size, 8)
    with torch.no_grad():
        mask = shifted_window_mask(size, window, like=x_NHWC)
        attended = x_NHWC + token_attention(block, block.norm1(x_NHWC))
        expected = attended + block.mlp(block.norm2(attended))
        torch.testing.assert_close(block(x_NHWC, mask), expected, rtol=1e-4, atol=1e-5)


# --- behaviour --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (33, 65), (31, 47), (1, 5)])
def test_any_image_size(size) -> None:
    model = tiny(out_features=(0, 1, 2, 3))
    outputs = model(torch.randn(2, 3, *size))
    for name, features in outputs.items():
        stride = model.output_shape()[name].stride
        expected = [-(-side // stride) for side in size]
        assert features.shape == (2, model.output_shape()[name].channels, *expected)
        assert torch.isfinite(features).all()


def test_pictures_of_a_batch_do_not_mix() -> None:
    model = tiny()
    images = torch.randn(3, 3, 40, 56)
    together = model(images)
    for index in range(3):
        alone = model(images[index : index + 1])
        for name, features in together.items():
            torch.testing.assert_close(
                features[index : index + 1], alone[name], rtol=1e-4, atol=1e-5
            )


def test_every_parameter_learns() -> None:
    model = tiny().train()
    outputs = model(torch.randn(1, 3, 64, 64))
    sum((features * torch.randn_like(features)).sum() for features in outputs.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_checkpointing_changes_neither_result_nor_gradient() -> None:
    size = SwinSize(8, (2, 2), (1, 2), window=4, drop_path=0.5)
    grads = []
    for use_checkpoint in (False, True):
        torch.manual_seed(1)
        model = SwinTransformer(size=size, out_features=(0, 1), use_checkpoint=use_checkpoint)
        images = torch.randn(4, 3, 24, 24)
        outputs = model.train()(images)
        total = sum(features.square().sum() for features in outputs.values())
        total.backward()
        grads.append([total.detach(), *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_branches_are_dropped_in_training_only() -> None:
    size = SwinSize(8, (2, 2), (1, 2), window=4, drop_path=0.9)
    model = SwinTransformer(size=size, out_features=(1,))
    images = torch.randn(2, 3, 32, 32)
    assert model.train() is model
    assert not torch.equal(model(images)["swin1"], model(images)["swin1"])
    model.eval()
    assert torch.equal(model(images)["swin1"], model(images)["swin1"])


def test_half_precision() -> None:
    model, images = tiny(), torch.randn(1, 3, 40, 40)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images)
    for name, features in outputs.items():
        torch.testing.assert_close(features.float(), expected[name], rtol=0.1, atol=0.1)


def test_other_channels_of_the_image() -> None:
    model = build_backbone(config(SIZE="T", OUT_FEATURES=(0,)), ShapeSpec(channels=1))
    assert model(torch.randn(1, 1, 32, 32))["swin0"].shape == (1, 96, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"SIZE": "XL"}, r"MODEL.SWIN.SIZE: unknown size 'XL' \(one of T, S, B, B-22k"),
        ({"OUT_FEATURES": ()}, "MODEL.SWIN.OUT_FEATURES"),
        ({"OUT_FEATURES": (1, 4)}, "not rising numbers from 0 to 3"),
        ({"OUT_FEATURES": (2, 1)}, "not rising numbers from 0 to 3"),
    ],
)
def test_what_does_not_exist_is_refused(options, message) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_backbone(config(**options))
