"""Gathering with gradients in real processes: golden numbers, and the gradient of the full batch."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from ext_common.launch import launch
from regionclip_ext.losses.image_text import image_text_loss
from tests.golden_cases import golden_arrays
from tests.regionclip_ext.gather_main import worker

GOLDEN = "image_text_gather.npz"


def _run(arrays: dict[str, np.ndarray], world: int, folder: Path) -> list[dict[str, np.ndarray]]:
    inputs = folder / "inputs.npz"
    np.savez(inputs, **arrays)
    args = argparse.Namespace(
        num_gpus=world,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        inputs=str(inputs),
        result=str(folder / "result"),
    )
    launch(worker, args, device="cpu")
    results = []
    for rank in range(world):
        with np.load(f"{args.result}.{rank}.npz") as content:
            results.append(dict(content))
    return results


@pytest.mark.golden
def test_golden_image_text_gather(tmp_path: Path) -> None:
    arrays = golden_arrays("regionclip", GOLDEN)
    world = int(arrays["world_size"])
    for rank, found in enumerate(_run(arrays, world, tmp_path)):
        for key, value in found.items():
            expected = arrays[f"rank{rank}/{key}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * scale, err_msg=key)


def test_uneven_processes_together_have_the_gradient_of_the_full_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    counts = (5, 3)
    arrays: dict[str, np.ndarray] = {"temp": np.array(0.05, np.float32)}
    for rank, count in enumerate(counts):
        for name in ("global_feats", "text_embs"):
            arrays[f"rank{rank}/{name}"] = torch.randn(count, 12, generator=generator).numpy()
    found = _run(arrays, len(counts), tmp_path)

    images, texts = (
        torch.cat(
            [torch.from_numpy(arrays[f"rank{rank}/{name}"])[: min(counts)] for rank in range(2)]
        ).requires_grad_()
        for name in ("global_feats", "text_embs")
    )
    loss = image_text_loss(images, texts, 0.05)
    loss.backward()
    for rank, count in enumerate(counts):
        own = slice(rank * min(counts), (rank + 1) * min(counts))
        np.testing.assert_allclose(found[rank]["loss"], loss.detach(), rtol=1e-5)
        for name, full in (("global_feats", images), ("text_embs", texts)):
            gradient = found[rank][f"grad_{name}"]
            # DistributedDataParallel divides by the number of processes
            np.testing.assert_allclose(
                gradient[: min(counts)] / len(counts), full.grad[own], rtol=1e-4, atol=1e-6
            )
            assert not gradient[min(counts) :].any()
            assert len(gradient) == count
