"""The folded attention pool: golden values, and the plain computation as a twin."""

from __future__ import annotations

import pytest
import torch

from benchmarks.regionclip_pretraining import all_queries
from regionclip_ext.modeling.attention_pool import AttentionPool
from tests.regionclip_ext.golden_models import golden_parts, stored_weights


@pytest.mark.golden
def test_golden_attention_pool() -> None:
    for get in golden_parts("attnpool.npz").values():
        weights = stored_weights(get)
        x = get["x"].requires_grad_()
        pool = AttentionPool(x.shape[2], x.shape[1], int(get["heads"]), len(weights["c_proj.bias"]))
        pool.load_state_dict(weights)
        y = pool(x)
        torch.testing.assert_close(y, get["y"], atol=1e-5, rtol=0)
        (y * torch.arange(1, y.shape[1] + 1)).sum().backward()
        torch.testing.assert_close(x.grad, get["grad_x"], atol=1e-4, rtol=0)


def test_folded_pool_equals_the_plain_one_with_all_gradients() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(3, 16, 4, 6).double()
    x = torch.randn(5, 16, 3, 3, dtype=torch.float64)
    parameters = list(pool.parameters())
    ours, plain = pool(x), all_queries(pool, x)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_chunks_do_not_change_the_result_and_no_regions_are_fine() -> None:
    pool = AttentionPool(2, 8, 2, 5, chunk=3)
    x = torch.randn(10, 8, 2, 2)
    whole = AttentionPool(2, 8, 2, 5)
    whole.load_state_dict(pool.state_dict())
    torch.testing.assert_close(pool(x), whole(x), atol=1e-6, rtol=0)
    assert pool(x[:0]).shape == (0, 5)


def test_maps_of_another_size_are_refused_with_the_resolution_to_set() -> None:
    with pytest.raises(ValueError, match="POOLER_RESOLUTION must be 4"):
        AttentionPool(2, 8, 2, 5)(torch.randn(1, 8, 3, 3))
