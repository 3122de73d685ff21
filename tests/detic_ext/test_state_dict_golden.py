"""Parameter names and shapes of full-size models against the authors' (state_dict_*.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from torch import nn

from ext_common.config import load_config
from tests.detic_ext.e2e_cases import CONFIGS
from tests.golden_cases import golden_root

pytestmark = pytest.mark.golden

# statistics of frozen batch norms, which only some versions of detectron2 register
_VERSION_DEPENDENT = "num_batches_tracked"


def recorded(name: str) -> dict[str, tuple[int, ...]]:
    content = json.loads((golden_root() / "detic" / f"state_dict_{name}.json").read_text())
    return {
        key: tuple(shape) for key, shape in content.items() if not key.endswith(_VERSION_DEPENDENT)
    }


def own(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if not key.endswith(_VERSION_DEPENDENT)
    }


@pytest.mark.parametrize(
    ("name", "base", "parameters"),
    [
        ("OVCOCO", "Base_OVCOCO_C4_1x.yaml", 38.2e6),
        ("R50", "Base-C2_L_R5021k_640b64_4x.yaml", 101.7e6),
    ],
)
def test_golden_names_of_full_size_models(
    name: str, base: str, parameters: float, tmp_path: Path
) -> None:
    wanted = recorded(name)
    columns = {shape for key, shape in wanted.items() if key.endswith("zs_weight")}
    (width, classes), classes_only = columns.pop(), [s[0] for k, s in wanted.items() if "freq" in k]
    assert not columns
    assert set(classes_only) == {classes - 1}
    frequencies = tmp_path / "frequencies.json"
    frequencies.write_text(json.dumps([{"id": i, "image_count": 1} for i in range(classes - 1)]))
    settings = {
        "MODEL.VOCABULARY": ",".join(f"class {i}" for i in range(classes - 1)),
        "MODEL.TEXT_ENCODER.NAME": "hash",
        "MODEL.TEXT_ENCODER.DIM": width,
        "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS": True,
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": frequencies,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
    }
    model = build_model(
        load_config(CONFIGS / base, [str(word) for pair in settings.items() for word in pair])
    )
    assert own(model) == wanted
    # the count of the specification includes frozen stages
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(parameters, abs=0.06e6)
