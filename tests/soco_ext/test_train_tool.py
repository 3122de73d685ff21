"""The commands of docs/soco.md on a few pictures: proposals, pretraining, export, detector."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ext_common.weights_io import load_tensors
from soco_ext.evaluation.neighbours import nearest_of_others
from tests.soco_ext.tiny_soco import CONFIGS
from tools import convert_weights, prepare_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining of two steps."""
    folder = tmp_path_factory.mktemp("soco")
    generator = np.random.default_rng(0)
    (folder / "photos" / "sub").mkdir(parents=True)
    for number in range(6):
        pixels = generator.integers(0, 256, (8, 10, 3)).astype(np.uint8)
        name = f"{'sub/' if number % 2 else ''}{number}.png"
        Image.fromarray(pixels).resize((120, 100), 0).save(folder / "photos" / name)
    (folder / "my.yaml").write_text("datasets:\n  photos: {type: image_folder, images: photos}\n")
    proposals = folder / "photos.proposals"
    words = ["soco-proposals", "--images", str(folder / "photos"), "--output", str(proposals)]
    assert prepare_data.main([*words, "--source", "random", "--workers", "1"]) == 0
    command = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    command += ["--config-file", str(CONFIGS / "SoCo_tiny.yaml")]
    command += ["DATASETS.REGISTRY", f"('{folder / 'my.yaml'}',)", "DATASETS.TRAIN", "('photos',)"]
    command += ["SOCO.PROPOSALS.FILE", str(proposals), "OUTPUT_DIR", str(folder / "run")]
    command += ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.ACCUMULATE", "2"]
    command += ["SOCO.BASE_WIDTH", "8", "DATALOADER.NUM_WORKERS", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    return folder


def test_pretraining_runs_through_the_common_launcher(run: Path) -> None:
    state = load_tensors(run / "run" / "model_final.pth")
    assert state["iteration"] == 1
    assert state["hooks"]["TargetStep"] == {"ema_step": 2}
    assert all(value.isfinite().all() for value in state["model"].values())
    assert int(state["model"]["encoder.bn1.num_batches_tracked"]) == 2 * 2 * 3
    log = (run / "log.txt").read_text()
    assert "2 images x 2 accumulated = 4 per step; learning rate 1 x 4 / 256" in log


def test_export_gives_a_file_for_detectron2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run / "soco.pkl"
    source = run / "run" / "model_final.pth"
    words = ["--path", str(source), "--export", "soco-fpn", "--output", str(output)]
    assert convert_weights.main(words) == 0
    assert "left out" in capsys.readouterr().out
    content = load_tensors(output)
    assert content["matching_heuristics"]
    weights = load_tensors(source)["model"]
    stem = torch.as_tensor(content["model"]["stem.conv1.weight"])
    assert torch.equal(stem, weights["encoder.conv1.weight"])
    assert not any("_k" in name or "predictor" in name for name in content["model"])
    assert convert_weights.main([*words[:2], "--export", "soco", "--output", str(output)]) == 1
    assert "soco-c4, soco-fpn" in capsys.readouterr().err


def test_neighbours_are_drawn_from_the_checkpoint(run: Path) -> None:
    output = run / "neighbours.png"
    words = ["soco-neighbours", "--config-file", str(CONFIGS / "SoCo_tiny.yaml")]
    words += ["--weights", str(run / "run" / "model_final.pth"), "--images", str(run / "photos")]
    words += ["--proposals", str(run / "photos.proposals"), "--output", str(output)]
    words += ["--rows", "3", "--count", "2", "--opts", "SOCO.BASE_WIDTH", "8"]
    assert prepare_data.main(words) == 0
    with Image.open(output) as sheet:
        assert sheet.width > 3 * 180
        assert len(set(sheet.convert("L").tobytes())) > 20


def test_neighbours_are_of_other_pictures_and_in_order() -> None:
    vectors = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [1.0, 1.0]]), dim=1
    )
    owners = np.array([0, 0, 1, 1, 2])
    found = nearest_of_others(vectors, owners, 0, 5)
    assert [box for box, _ in found] == [2, 4]
    assert found[1][1] == pytest.approx(0.5**0.5)
    assert nearest_of_others(vectors, owners, 3, 1) == [(4, pytest.approx(0.5**0.5))]
