"""Pair loss, pooling and the momentum schedule against recorded numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from soco_ext.losses.pair_similarity import pair_loss
from soco_ext.modeling.momentum import momentum_at, momentum_steps
from soco_ext.modeling.region_pooling import map_rois, pool_regions
from tests.golden_cases import golden_arrays, golden_root

pytestmark = pytest.mark.golden


def cases(name: str, prefix: str) -> list[int]:
    arrays = golden_arrays("soco", name)
    return sorted(int(key[len(prefix) :]) for key in arrays if key.startswith(prefix))


@pytest.mark.parametrize("case", cases("pair_loss.npz", "loss_"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_golden_pair_loss(case: int, dtype: torch.dtype) -> None:
    arrays = golden_arrays("soco", "pair_loss.npz")
    q, k, matrix = (torch.from_numpy(arrays[f"{n}_{case}"]).to(dtype) for n in ("q", "k", "corres"))
    assert pair_loss(q, k, matrix).item() == pytest.approx(arrays[f"loss_{case}"].item(), abs=1e-6)


@pytest.mark.parametrize("case", cases("roi_align.npz", "feat_"))
def test_golden_roi_align(case: int) -> None:
    arrays = golden_arrays("soco", "roi_align.npz")
    maps = torch.from_numpy(arrays[f"feat_{case}"])
    rois = map_rois(torch.from_numpy(arrays[f"boxes_norm_{case}"]), *maps.shape[-2:])
    np.testing.assert_allclose(rois.numpy(), arrays[f"rois_{case}"], rtol=1e-6, atol=1e-6)
    size, aligned = int(arrays[f"out_{case}"]), bool(arrays[f"aligned_{case}"])
    pooled = pool_regions(maps, rois, size, aligned=aligned)
    np.testing.assert_allclose(pooled.numpy(), arrays[f"pooled_{case}"], rtol=1e-5, atol=1e-5)


def model_files() -> list[str]:
    return sorted(path.name for path in (golden_root() / "soco").glob("model_fpn*.npz"))


@pytest.mark.parametrize("name", model_files())
def test_golden_pooled_regions_of_the_models(name: str) -> None:
    arrays = golden_arrays("soco", name)
    expected = arrays["out/roi_view1_12_p3"]
    maps = torch.from_numpy(arrays["out/fpn_view1_p3"])
    rois = map_rois(torch.from_numpy(arrays["in/boxes1_12"]), *maps.shape[-2:])
    pooled = pool_regions(maps, rois, expected.shape[-1]).numpy()
    assert np.linalg.norm(pooled - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("case", cases("ema_schedule.npz", "cfg_"))
def test_golden_momentum_schedule(case: int) -> None:
    arrays = golden_arrays("soco", "ema_schedule.npz")
    images, world, batch, epochs, start_epoch, base = map(float, arrays[f"cfg_{case}"])
    total = momentum_steps(images, world, batch, epochs)
    assert total == int(arrays[f"K_{case}"])
    assert momentum_steps(images, world, batch, start_epoch - 1) == int(arrays[f"k0_{case}"])
    found = [momentum_at(int(k), total, base) for k in arrays[f"k_{case}"]]
    np.testing.assert_allclose(found, arrays[f"momentum_{case}"], rtol=0, atol=1e-12)
