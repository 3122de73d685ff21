"""Whole detectors against the authors' code: regions, features, scores, detections, masks, losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from tests.regionclip_ext.golden_models import GoldenDetector, golden_names

pytestmark = pytest.mark.golden


def _assert_close(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    assert ours.shape == golden.shape
    torch.testing.assert_close(ours, golden, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", golden_names("e2e_"))
def test_golden_inference(name: str, tmp_path: Path) -> None:
    case = GoldenDetector(name, tmp_path)
    model = case.model().eval()
    batch = case.batch()
    with torch.no_grad():
        images, features, (regions,) = model.see(batch)
        (embeddings,) = model.region_embeddings(batch)[1]
        logits, deltas = model.roi_heads.box_predictor(embeddings)
        (raw,) = model.inference(batch, do_postprocess=False)
        out = model(batch)[0]["instances"]
    corner = case.tensor("clip_input_corner")
    _assert_close(images.tensor[:, :, : corner.shape[2], : corner.shape[3]], corner, 1e-5)
    _assert_close(features["res4"], case.tensor("res4"), 1e-5)
    if "proposal_boxes" in case.arrays:
        _assert_close(regions.proposal_boxes.tensor, case.tensor("proposal_boxes"), 1e-2)
        _assert_close(regions.objectness_logits, case.tensor("objectness_logits"), 1e-4)
        offline = model.offline.normalize([batch[0]["image"]], [batch[0]["image"].shape[1:]])
        corner = case.tensor("offline_input")
        _assert_close(offline.tensor[:, :, : corner.shape[2], : corner.shape[3]], corner, 1e-4)
    _assert_close(embeddings, case.tensor("region_feats"), 1e-5)
    _assert_close(logits, case.tensor("logits"), 3e-2)
    _assert_close(deltas, case.tensor("deltas"), 1e-4)
    for found, prefix in ((raw, "raw"), (out, "out")):
        _assert_close(found.pred_boxes.tensor, case.tensor(f"{prefix}_boxes"), 1e-2)
        _assert_close(found.scores, case.tensor(f"{prefix}_scores"), 2e-3)
        assert torch.equal(found.pred_classes, case.tensor(f"{prefix}_classes"))
    if "out_masks_packed" in case.arrays:
        _assert_close(raw.pred_masks, case.tensor("raw_mask_probs"), 2e-3)
        shape = case.arrays["out_masks_shape"]
        bits = np.unpackbits(case.arrays["out_masks_packed"])[: int(np.prod(shape))]
        golden = torch.from_numpy(bits.reshape(shape)).bool()
        assert (out.pred_masks != golden).float().mean() < 1e-3


@pytest.mark.parametrize("name", golden_names("train_"))
def test_golden_training_step(name: str, tmp_path: Path) -> None:
    case = GoldenDetector(name, tmp_path)
    model = case.model().train()
    batch = case.batch(training=True)
    (regions,) = model.propose(batch)
    _assert_close(regions.proposal_boxes.tensor, case.tensor("proposal_boxes"), 1e-2)
    _assert_close(regions.objectness_logits, case.tensor("objectness_logits"), 1e-4)
    with EventStorage() as storage:
        losses = model(batch)
    for key, value in case.meta.get("logs", {}).items():
        assert storage.latest()[key][0] == pytest.approx(value), key
    for key in ("loss_cls", "loss_box_reg"):
        torch.testing.assert_close(losses[key], case.tensor(key), rtol=1e-3, atol=0)
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(case.arrays["grad_param_names"].tolist())
    for key in (k for k in case.arrays if k.startswith("g/")):
        golden = case.tensor(key)
        # the bias of the keys shifts all scores alike: its gradient is rounding noise
        floor = 1e-4 if key.endswith("k_proj.bias") else 0.0
        _assert_close(gradients[key[2:]], golden, 5e-3 * float(golden.abs().max()) + floor)
