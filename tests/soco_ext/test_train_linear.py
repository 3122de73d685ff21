"""Linear evaluation: what is trained, what is scored, through the common trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import DatasetError
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from ext_common.trainer import ExtTrainer
from soco_ext.evaluation.linear_data import LinearMapper
from soco_ext.evaluation.linear_score import accuracy
from tests.soco_ext.tiny_soco import CONFIGS, tiny_config

COLOURS = {"blue": (20, 30, 200), "green": (30, 190, 20), "red": (200, 20, 30)}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets of plain pictures, a folder per colour."""
    tmp_path = tmp_path_factory.mktemp("linear")
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, colour in COLOURS.items():
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                noise = generator.integers(-20, 21, (48, 60, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    text = "datasets:\n"
    for part in ("train", "val"):
        text += f"  linear_{part}: {{type: class_folders, images: {part}, classes: [blue, green, red]}}\n"
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    return path


def linear_config(registry: Path, *words: Any, run: str = "run") -> Any:
    register_all()
    base = ["DATASETS.REGISTRY", f"('{registry}',)", "DATASETS.TRAIN", "('linear_train',)"]
    base += ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18]
    base += ["SOCO.BASE_WIDTH", 8, "SOCO.LINEAR.NUM_CLASSES", 3, "SOCO.LINEAR.TEST", "linear_val"]
    base += ["SOCO.LINEAR.IMAGE_SIZE", 32, "SOCO.LINEAR.RESIZE_SIZE", 40, "SOLVER.BASE_LR", 1.0]
    base += ["SOLVER.IMS_PER_BATCH", 6, "SOLVER.MAX_ITER", 12, "SOLVER.WARMUP_ITERS", 2]
    base += ["OUTPUT_DIR", str(registry.parent / run), "SEED", 0, "DATALOADER.NUM_WORKERS", 0]
    cfg = load_config(CONFIGS / "Linear_R50.yaml", [*base, *words])
    register_from_config(cfg)
    return cfg


def test_training_learns_the_layer_alone_and_writes_scores(registry: Path) -> None:
    run = ExtTrainer(linear_config(registry))
    run.resume_or_load(resume=False)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    changed = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"fc.weight", "fc.bias"}
    assert int(run.model.encoder.bn1.num_batches_tracked) == 12
    lines = (registry.parent / "run" / "metrics.json").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert last["linear/top1"] > 90
    assert last["linear/top5"] == 100


def test_statistics_can_be_those_of_pretraining(registry: Path) -> None:
    model = build_model(linear_config(registry, "SOCO.LINEAR.ADAPT_STATISTICS", False)).train()
    model([{"image": torch.randn(3, 32, 32), "label": 0}] * 2)
    assert int(model.encoder.bn1.num_batches_tracked) == 0
    assert model.fc.training


def test_weights_of_a_pretraining_are_taken(tmp_path: Path, registry: Path) -> None:
    source = build_model(tiny_config("SoCoFPN"))
    torch.save({"model": source.state_dict()}, tmp_path / "soco.pth")
    words = ["MODEL.WEIGHTS", str(tmp_path / "soco.pth")]
    run = ExtTrainer(linear_config(registry, *words, run="from_pretraining"))
    run.resume_or_load(resume=False)
    assert torch.equal(
        run.model.encoder.layer4[1].conv2.weight, source.encoder.layer4[1].conv2.weight
    )


def test_accuracy_counts_the_best_and_the_five_best() -> None:
    class Fixed(nn.Module):
        def forward(self, batch: list[dict[str, Any]]) -> torch.Tensor:
            return torch.stack([sample["scores"] for sample in batch])

    scores = torch.arange(8.0)
    batches = [[{"scores": scores, "label": 7}, {"scores": scores, "label": 3}]]
    batches.append([{"scores": scores, "label": 2}, {"scores": -scores, "label": 0}])
    model = Fixed().train()
    assert accuracy(model, batches) == {"top1": 50.0, "top5": 75.0}
    assert model.training


def test_records_without_one_class_and_labels_without_a_score_are_refused(registry: Path) -> None:
    mapper = LinearMapper(size=16, max_pixels=10**6)
    with pytest.raises(DatasetError, match=r"a\.jpg.*2 classes"):
        mapper({"file_name": "a.jpg", "pos_category_ids": [1, 2]})
    model = build_model(linear_config(registry)).train()
    with pytest.raises(DatasetError, match="class 3 of 3"):
        model([{"image": torch.zeros(3, 32, 32), "label": 3}] * 2)
