"""Published configuration files build models with the keys and shapes of the authors' checkpoints.

The models are built on the meta device: full size, no memory, no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import detic_ext  # noqa: F401 - registers the model parts
from ext_common.config import load_config
from tests.golden_cases import golden_root

pytestmark = pytest.mark.golden

Shapes = dict[str, tuple[int, ...]]
CONFIGS = Path(__file__).parents[2] / "configs" / "detic"
# of frozen batch norms: current detectron2 registers it, published files do not have it
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Published:
    """A published model: its configuration and, where the specification gives it, its size."""

    config: str
    million_parameters: float | None = None
    extends: str = ""  # the listing holds only what this model has beyond another one


MODELS = {
    "R50": Published("BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x", 101.7),
    "SwinB": Published("BoxSup-C2_Lbase_CLIP_SwinB_896b32_4x", 141.6),
    "OVCOCO": Published("BoxSup_OVCOCO_CLIP_R50_1x", 38.2),
    "extra_R18_LCOCOI21k": Published("Detic_LCOCOI21k_CLIP_R18_640b32_4x_ft4x_max-size"),
    "extra_CXT_LCOCOI21k": Published("Detic_LCOCOI21k_CLIP_CXT21k_640b32_4x_ft4x_max-size"),
    "extra_caption_text_encoder": Published("Detic_OVCOCO_CLIP_R50_1x_caption", extends="OVCOCO"),
}


def listing(name: str) -> Shapes:
    content = json.loads((golden_root() / "detic" / f"state_dict_{name}.json").read_text())
    return {key: tuple(shape) for key, shape in content.items()}


def shapes_of(model: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def without_counters(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not key.endswith(COUNTER)}


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Published, Shapes], nn.Module]:
    """Builds a published model, with files made up for the classes of a listing."""

    def build_(published: Published, wanted: Shapes) -> nn.Module:
        opts = ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
        columns = {shape for key, shape in wanted.items() if key.endswith("zs_weight")}
        for width, num_columns in columns:
            count = num_columns - 1
            embeddings, frequencies = tmp_path / "embeddings.npy", tmp_path / "frequencies.json"
            np.save(embeddings, np.random.default_rng(0).normal(size=(count, width)).astype("f2"))
            opts += ["MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH", str(embeddings)]
            if any(key.endswith("freq_weight") for key in wanted):
                records = [{"id": i, "image_count": 1} for i in range(1, count + 1)]
                frequencies.write_text(json.dumps(records))
            opts += ["MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", str(frequencies)]
        cfg = load_config(CONFIGS / f"{published.config}.yaml", opts)
        with torch.device("meta"):
            return build_model(cfg)

    return build_


@pytest.mark.parametrize("name", MODELS)
def test_golden_state_dict(name: str, build: Callable[[Published, Shapes], nn.Module]) -> None:
    published = MODELS[name]
    wanted = (listing(published.extends) if published.extends else {}) | listing(name)
    model = build(published, wanted)
    ours = shapes_of(model)
    assert without_counters(ours) == without_counters(wanted)
    # a counter that is there belongs to a batch norm of the listing
    norms = {key.rpartition(".")[0] for key in wanted if key.endswith("running_mean")}
    counters = {key.rpartition(".")[0] for key in ours if key.endswith(COUNTER)}
    assert counters in (set(), norms)
    if published.million_parameters is not None:
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count / 1e6 == pytest.approx(published.million_parameters, abs=0.06)
