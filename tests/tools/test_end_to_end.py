"""The commands of the README on a small copy of the demo's data, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.packages import register_all
from ext_common.predictor import Predictor
from ext_common.vocabulary import Vocabulary
from tools.demo_table import format_table, plot, read_scores

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "40",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "10",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    "DATALOADER.NUM_WORKERS", "0",
    "DATALOADER.DATASET_BS", "[2, 2]",
    "SOLVER.IMS_PER_BATCH", "2",
    "INPUT.TRAIN_SIZE", "96",
    "INPUT.TEST_SIZE", "96",
]  # fmt: skip


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end_to_end") / "data"
    run(
        "make_demo_dataset.py", "--output", folder,
        "--train", 24, "--labels", 24, "--val", 6, "--size", 128,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """Two iterations of boxes, then four of Detic from their weights."""
    registry = ["DATASETS.REGISTRY", f"('{data / 'datasets.yaml'}',)"]
    boxes, detic = data.parent / "boxes", data.parent / "detic"
    run(
        "train_net.py", "--config-file", "configs/demo/BoxSup_demo.yaml",
        "OUTPUT_DIR", boxes, "SOLVER.MAX_ITER", 2, *registry, *SMALL,
    )  # fmt: skip
    run(
        "train_net.py", "--config-file", "configs/demo/Detic_demo.yaml",
        "OUTPUT_DIR", detic, "MODEL.WEIGHTS", boxes / "model_final.pth",
        "SOLVER.MAX_ITER", 4, *registry, *SMALL,
    )  # fmt: skip
    return detic


def test_training_writes_results_metrics_and_a_checkpoint(trained: Path) -> None:
    scores = read_scores(trained / "results.json")
    assert set(scores.values) == {"AP50 base", "AP50 novel", "AP base", "AP novel"}
    lines = (trained / "metrics.json").read_text(encoding="utf-8").splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert {"total_loss", "image_loss_stage0", "loss_cls_stage2", "lr"} <= names
    assert list(trained.glob("events.out.tfevents*"))
    content = torch.load(trained / "model_final.pth", weights_only=True)
    assert len(content["vocabulary"]["names"]) == 12


def test_demo_tool_finds_a_custom_vocabulary(trained: Path, data: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    run(
        "demo.py", "--config-file", "configs/demo/Detic_demo.yaml",
        "--input", f"{data}/images/**", "--output", found, "--vocabulary", 'red star, "striped ring"',
        "--confidence-threshold", 0.0, "--format", "image,coco,csv", "--batch-size", 4,
        "--opts", "MODEL.WEIGHTS", trained / "model_final.pth",
        "DATASETS.REGISTRY", f"('{data / 'datasets.yaml'}',)", *SMALL,
    )  # fmt: skip
    result = json.loads((found / "detections.json").read_text(encoding="utf-8"))
    assert [category["name"] for category in result["categories"]] == ["red star", "striped ring"]
    assert result["annotations"]
    assert (found / "contact_sheet.jpg").stat().st_size > 1000


def test_predictors_from_python(trained: Path, data: Path) -> None:
    register_all()
    opts = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), *SMALL]
    registry = ["DATASETS.REGISTRY", f"('{data / 'datasets.yaml'}',)"]
    cfg = load_config(ROOT / "configs/demo/Detic_demo.yaml", [*opts, *registry])
    register_from_config(cfg)
    picture = next(path for path in sorted((data / "images").rglob("*")) if path.is_file())
    image = cv2.imread(str(picture))
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert instances.image_size == image.shape[:2]
    ours = Predictor(cfg)
    other = ours.with_vocabulary(Vocabulary.parse("blue moon, red star"))
    for predictor, count in ((ours, 12), (other, 2)):
        found = predictor([image])[0]
        assert len(found.class_names) == count
        assert np.isfinite(found.scores_R).all()


def test_demo_table_and_plot(trained: Path, tmp_path: Path) -> None:
    scores = read_scores(trained / "results.json")
    rows = {"before": [scores, scores], "after": [scores]}
    table = format_table(rows)
    assert table.splitlines()[0] == "| | AP50 base | AP50 novel | AP base | AP novel |"
    assert "±" in table.splitlines()[2]
    assert "±" not in table.splitlines()[3]
    plot(rows, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_HEADS.NAM", "x"], "did you mean MODEL.ROI_HEADS.NAME"),
        (["DATASETS.TRAIN", "('demo_base_trian',)"], "demo_base_train"),
        (["MODEL.VOCABULARY", "a,b,c"], "3"),
        (["MODEL.WEIGHTS", "nowhere/model.pth"], "nowhere/model.pth"),
        (["MODEL.VOCABULARY", " , "], "empty"),
    ],
)
def test_bad_input_ends_in_one_useful_line(
    data: Path, tmp_path: Path, opts: list[str], message: str
) -> None:
    done = run(
        "train_net.py", "--config-file", "configs/demo/BoxSup_demo.yaml",
        "OUTPUT_DIR", tmp_path / "out", "DATASETS.REGISTRY", f"('{data / 'datasets.yaml'}',)",
        "SOLVER.MAX_ITER", 1, *SMALL, *opts, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert message in last
    assert "Traceback" not in done.stderr
