"""CLIP's text tower: equal to its definition, frozen, and in float32 whatever is around."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ext_common.modeling.text_tower import TextTower, TextTowerShape

TEXTS = ([100, 1, 2, 101], [100, 3, 2, 1, 101], [100, 8, 7, 6, 5, 4, 3, 2, 1, 101])


def small_tower(*, quick_gelu: bool = True) -> TextTower:
    torch.manual_seed(3)
    shape = TextTowerShape(
        embed_dim=6, width=8, heads=2, layers=2, context=10, vocabulary=102, quick_gelu=quick_gelu
    )
    tower = TextTower(shape)
    for parameter in tower.parameters():  # biases begin at 0, and then would prove nothing
        torch.nn.init.normal_(parameter, std=0.5)
    return tower


def features_by_loops(tower: TextTower, tokens: list[int]) -> Tensor:
    """All features [L, D] of one text, token by token and head by head."""
    shape = tower.shape
    x = tower.token_embedding.weight[tokens] + tower.positional_embedding[: len(tokens)]
    size = shape.width // shape.heads
    for block in tower.transformer.resblocks:
        normed = block.ln_1(x)
        q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=1)
        seen = torch.zeros_like(x)
        for head in range(shape.heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(tokens)):
                weights = (k[: row + 1, part] @ q[row, part] / size**0.5).softmax(dim=0)
                seen[row, part] = weights @ v[: row + 1, part]
        x = x + block.attn.out_proj(seen)
        hidden = block.mlp.c_fc(block.ln_2(x))
        slope = (
            hidden.mul(1.702).sigmoid() if shape.quick_gelu else (hidden / 2**0.5).erf() / 2 + 0.5
        )
        x = x + block.mlp.c_proj(hidden * slope)
    return tower.ln_final(x) @ tower.text_projection


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_tower_equals_its_definition(quick_gelu: bool) -> None:
    tower = small_tower(quick_gelu=quick_gelu)
    for tokens in TEXTS:
        wanted_LD = features_by_loops(tower, tokens)
        padded = torch.zeros(1, 10, dtype=torch.int64)
        padded[0, : len(tokens)] = torch.tensor(tokens)
        for tokens_1L in (padded, padded[:, : len(tokens)]):
            whole = tower(tokens_1L, only_eot=False)[0, : len(tokens)]
            torch.testing.assert_close(whole, wanted_LD, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tower(tokens_1L)[0], wanted_LD[-1], rtol=1e-4, atol=1e-5)


def test_the_tower_is_frozen_and_keeps_single_precision() -> None:
    tower = small_tower()
    tokens = torch.tensor([TEXTS[2]])
    plain = tower(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tower(tokens), plain)
    assert plain.dtype == torch.float32
    assert not plain.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert "attn_mask" not in tower.state_dict()


def test_equal_seeds_make_equal_towers() -> None:
    one, other = small_tower(), small_tower()
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
