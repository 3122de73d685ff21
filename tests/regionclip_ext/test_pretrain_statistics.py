"""What a pretraining step writes to the metrics, and its losses in bfloat16."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from regionclip_ext.concepts.templates import SCENE_TEMPLATES
from regionclip_ext.data.pair_mapper import PairMapper
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.data.tsv_pairs import TsvPairs
from tests.regionclip_ext.pair_files import write_tsv
from tests.regionclip_ext.pretrain_cases import CONCEPTS, random_config
from tests.regionclip_ext.pretrain_runs import batch_of_two, build_pretraining, step_losses

FILE = [("CLIP.CROP_REGION_TYPE", "FILE"), ("CLIP.PRETRAIN_SAMPLE_REGIONS", None)]


def _metrics(model: Any, batch: list[dict[str, Any]], iteration: int = 0) -> dict[str, float]:
    storage = EventStorage(iteration)
    step_losses(model, batch, storage)
    return {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("temperature", [None, 0.3], ids=["published", "warmer"])
def test_pseudo_labels_are_summed_up_every_20_steps(
    tmp_path: Path, temperature: float | None
) -> None:
    options: list[tuple[str, Any]] = [*FILE, ("CLIP.CONCEPT_THRES", 0.5)]
    if temperature is not None:
        options.append(("CLIP.TEACHER_TEMP", temperature))
    model = build_pretraining(random_config(tmp_path, options))
    batch = batch_of_two(proposals=True)
    found = _metrics(model, batch)
    boxes = [item["proposals"].proposal_boxes for item in batch]
    with torch.no_grad():
        probs = _teacher_probabilities(model, batch, boxes, temperature or 0.01)
    entropy = -(probs * probs.clamp(min=1e-30).log()).sum(dim=1).mean()
    confident = probs.amax(dim=1) > 0.5
    kept = probs[confident] if confident.any() else probs
    assert found == {
        "pretrain/confident_regions": pytest.approx(float(confident.float().mean())),
        "pretrain/label_confidence": pytest.approx(float(probs.amax(dim=1).mean()), rel=1e-3),
        "pretrain/label_entropy": pytest.approx(float(entropy), rel=1e-2, abs=1e-4),
        "pretrain/concepts_seen": len(kept.argmax(dim=1).unique()),
    }
    assert found["pretrain/label_entropy"] < math.log(CONCEPTS)
    assert _metrics(model, batch, iteration=7) == {}


def _teacher_probabilities(
    model: Any, batch: list[dict[str, Any]], boxes: Any, temperature: float
) -> torch.Tensor:
    """The specification's formula (3.2), step by step."""
    height = max(item["image"].shape[1] for item in batch)
    width = max(item["image"].shape[2] for item in batch)
    mean = torch.tensor(model.pixels.mean)[:, None, None]
    std = torch.tensor(model.pixels.std)[:, None, None]
    images = torch.stack([
        F.pad((i["image"] / 255 - mean) / std, (0, width - i["image"].shape[2],
                                                0, height - i["image"].shape[1]))
        for i in batch
    ])  # fmt: skip
    teacher = model.teacher_backbone
    pooled = model.roi_heads.teacher_pooler([teacher(images)["res4"]], boxes)
    seen = F.normalize(teacher.attnpool(teacher.last_stage(pooled)), dim=1)
    concepts = F.normalize(model.teacher_concepts_CT, dim=1)
    return (seen @ concepts.T / temperature).softmax(dim=1)


def test_captions_that_are_cut_are_counted_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random.seed(0)
    records = PairRecords([TsvPairs(write_tsv(tmp_path / "tsv", 4))])
    mapper = PairMapper(records, ShortSideResize(48, 96), SCENE_TEMPLATES, context=8)
    batch = [mapper({"image_id": number % 4}) for number in range(8)]
    # "a wall" fits, of "a yellow square on a red wall" the end does not
    short = [sample["caption"] == "a wall" for sample in batch]
    assert [sample["caption_length"] for sample in batch] == [4 if s else 9 for s in short]
    cut = 8 - sum(short)
    assert 0 < cut < 8
    options = [("CLIP.CROP_REGION_TYPE", "RANDOM"), ("CLIP.LANG_ENCODER.CONTEXT", 8)]
    model = build_pretraining(random_config(tmp_path, options))
    with caplog.at_level(logging.WARNING):
        first = _metrics(model, batch)["pretrain/cut_captions"]
        assert first == pytest.approx(cut / 8)
        batch = [{**sample, "caption_length": 4} for sample in batch]
        assert _metrics(model, batch, 20)["pretrain/cut_captions"] == pytest.approx(cut / 16)
    assert caplog.text.count("tokens, of which the text encoder takes 8") == 1


def test_losses_in_bfloat16_are_close_and_stay_single_precision(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path, FILE))
    batch = batch_of_two(proposals=True)
    exact = step_losses(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = step_losses(model, batch)
    torch.stack(list(half.values())).sum().backward()
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.02), name
    gradients = [p.grad for p in model.backbone.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
