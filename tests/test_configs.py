"""Every file under configs/ loads, has known keys only, and builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ext_common.config import load_config, validate_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.packages import register_all
from ext_common.yaml_safe import read_yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
MAX_BASES = 3


@pytest.fixture(scope="module")
def demo_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's datasets, small."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    sizes = ["--train", "24", "--labels", "24", "--val", "12"]
    subprocess.run(
        [sys.executable, ROOT / "tools" / "make_demo_dataset.py", "--output", folder, *sizes],
        check=True,
        capture_output=True,
    )
    return folder / "datasets.yaml"


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_bases_are_few_and_only_differences_are_repeated(path: Path) -> None:
    depth, current = 0, ROOT / path
    while True:
        base = read_yaml(current).get("_BASE_")
        if base is None:
            break
        depth += 1
        current = current.parent / base
    assert depth <= MAX_BASES


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parts[1] == "demo"], ids=str)
def test_demo_configs_build(path: Path, demo_registry: Path) -> None:
    register_all()
    weights = ["MODEL.WEIGHTS", ""]
    cfg = load_config(ROOT / path, ["DATASETS.REGISTRY", f"('{demo_registry}',)", *weights])
    register_from_config(cfg)
    validate_config(cfg, training=True)
    model = build_model(cfg).eval()
    inputs = [{"image": torch.zeros(3, 96, 128), "height": 96, "width": 128}]
    with torch.no_grad():
        found = model(inputs)[0]["instances"]
    assert found.image_size == (96, 128)
    assert len(model.vocabulary) == 12
