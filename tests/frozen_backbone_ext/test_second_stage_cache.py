"""Second stage with stored regions: the same losses as without, and only where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from ext_common.config import validate_config
from ext_common.errors import ConfigError
from frozen_backbone_ext.second_stage import balance_predictors
from frozen_backbone_ext.second_stage_cache import CachesRegions, RegionCache
from tests.dist.tiny_training import write_run
from tests.frozen_backbone_ext.test_detector_parts import PAPER
from tests.frozen_backbone_ext.tiny_frozen import NASFPN, frozen_config, frozen_model, item
from tools.train_net import main

STAGE2: dict[str, Any] = {
    "MODEL.CLASSIFIER_STAGE2.ENABLED": True,
    "MODEL.WEIGHTS": "first_stage.pth",
    # as many as there are: nothing is drawn at random
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4096,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
}
CASCADE = {**PAPER, "MODEL.MASK_ON": False}
HEADS: dict[str, dict[str, Any]] = {
    "standard": {},
    "detectron2's cascade": {**CASCADE, "MODEL.ROI_HEADS.NAME": "CascadeROIHeads"},
    "averaged cascade": CASCADE,
}
FIXED = {
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.CUSTOM_AUG": "EfficientDetResizeCrop",
    "INPUT.SCALE_RANGE": "(1.0, 1.0)",
}
FOLDER = "MODEL.CLASSIFIER_STAGE2.CACHE_FOLDER"


def _model(changes: dict[str, Any]) -> Any:
    model = frozen_model({**changes, "MODEL.WEIGHTS": ""})
    balance_predictors(model, torch.tensor([100.0, 10.0, 1.0]), 0.99, "mean")
    return model.train()


def _losses(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    with EventStorage(0):
        losses: dict[str, torch.Tensor] = model(batch)
    return losses


def _step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    torch.stack(list(_losses(model, batch).values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _state(model: nn.Module) -> RegionCache:
    assert isinstance(model, CachesRegions)
    return model._regions


@pytest.mark.parametrize("heads", HEADS)
def test_stored_regions_give_the_same_losses_and_training(heads: str, tmp_path: Path) -> None:
    changes = STAGE2 | HEADS[heads]
    plain, cached = _model(changes), _model({**changes, FOLDER: str(tmp_path)})
    batch = [item(), item()]
    computed: list[int] = []
    cached.backbone.register_forward_hook(lambda *_: computed.append(1))
    for number in range(3):
        expected, found = _losses(plain, batch), _losses(cached, batch)
        assert {name for name in expected if "rpn" not in name} == set(found)
        for name, loss in found.items():
            torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6)
            assert loss.requires_grad == name.startswith("loss_cls")
        assert len(computed) == 2  # once per picture
        assert _state(cached).hits == 2 * 2 * number
        _step(plain, batch)
        _step(cached, batch)
    ours, theirs = cached.state_dict(), plain.state_dict()
    before = _model(changes).state_dict()
    moved = [name for name in ours if not torch.equal(ours[name], before[name])]
    assert moved
    assert all("cls_score" in name for name in moved)
    for name in moved:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        one, other = (m.eval()([batch[0]])[0]["instances"] for m in (plain, cached))
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-5)


def test_features_of_the_second_stage_are_those_of_evaluation() -> None:
    cells = {"CELL": "bottleneck", "MERGE": "sum", "DROP_CONNECT": 0.5, "CHECKPOINT": True}
    neck = {**NASFPN, **{f"MODEL.NASFPN.{key}": value for key, value in cells.items()}}
    model = _model(STAGE2 | neck)
    images = torch.randn(2, 3, 128, 128)
    assert model.roi_heads.training
    with torch.no_grad():
        first, again = model.backbone(images), model.backbone(images)
        expected = model.eval().backbone(images)
    assert all(torch.equal(first[key], expected[key]) for key in expected)
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    plain = frozen_model(neck).train()
    with torch.no_grad():
        other = plain.backbone(images)
    assert not torch.equal(other["p3"], plain.backbone(images)["p3"])


def test_a_draw_of_regions_is_the_same_on_hit_and_miss(tmp_path: Path) -> None:
    changes = {**STAGE2, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 4, FOLDER: str(tmp_path)}
    model, batch, drawn = _model(changes), [item()], []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(_losses(model, batch)["loss_cls"])
    assert _state(model).hits == 1
    assert torch.equal(*drawn)
    torch.manual_seed(6)
    assert not torch.equal(_losses(model, batch)["loss_cls"], drawn[0])


def test_other_pixels_objects_weights_and_settings_are_computed_anew(tmp_path: Path) -> None:
    changes = {**STAGE2, FOLDER: str(tmp_path)}
    model, picture = _model(changes), item()
    _losses(model, [picture])
    other_pixels = {**picture, "image": picture["image"] ^ 1}
    other_boxes = dict(picture, instances=item()["instances"])
    other_boxes["instances"].gt_boxes.tensor[0, 0] += 1
    for number, changed in enumerate((other_pixels, other_boxes), start=2):
        _losses(model, [changed])
        assert (_state(model).hits, _state(model).misses) == (0, number)
    _step(model, [picture])  # the classifiers' weights do not count
    assert _state(model).hits == 1
    again = _model(changes)
    _losses(again, [picture])
    assert (_state(again).hits, _state(again).misses) == (1, 0)
    weights = {name: tensor + 1e-3 for name, tensor in model.state_dict().items()}
    again.load_state_dict(weights, strict=False)
    _losses(again, [picture])
    assert _state(again).misses == 1
    few = _model({**changes, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 5})
    _losses(few, [picture])
    assert _state(few).misses == 1
    expected = _losses(model, [picture])["loss_cls"]
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(b"damaged")
    torch.testing.assert_close(_losses(model, [picture])["loss_cls"], expected)
    assert _state(model).misses == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.CLASSIFIER_STAGE2.ENABLED": False}, "more than the classifiers is trained"),
        ({"INPUT.RANDOM_FLIP": "horizontal"}, "RANDOM_FLIP should be none"),
        ({"INPUT.SCALE_RANGE": "(0.1, 2.0)"}, "SCALE_RANGE should be"),
        ({"INPUT.SCALE_RANGE": "(2.0, 2.0)"}, "SCALE_RANGE should be"),
        ({"INPUT.CUSTOM_AUG": "DETR"}, "CUSTOM_AUG should be"),
        ({"INPUT.CUSTOM_AUG": "", "INPUT.MIN_SIZE_TRAIN": "(640, 800)"}, "one number"),
        ({"INPUT.CUSTOM_AUG": "", "INPUT.CROP.ENABLED": True}, "CROP.ENABLED should be False"),
        ({"DATALOADER.SAMPLER_TRAIN": "CopyPasteTrainingSampler"}, "one of Copy-Paste"),
    ],
    ids=["stage 1", "flip", "scale", "large", "DETR", "sizes", "crop", "copy-paste"],
)
def test_views_that_change_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {**STAGE2, **FIXED, FOLDER: "regions"}
    validate_config(frozen_config(settings), training=True)
    with pytest.raises(ConfigError, match=message):
        validate_config(frozen_config(settings | changes), training=True)
    # the trunk's own cache needs the same of the views
    if "ENABLED" not in next(iter(changes)):
        trunk = {**FIXED, "MODEL.BACKBONE_FREEZE.CACHE_FOLDER": "maps"}
        validate_config(frozen_config(trunk), training=True)
        with pytest.raises(ConfigError, match=message):
            validate_config(frozen_config(trunk | changes), training=True)
        validate_config(frozen_config(trunk | changes), training=False)


def test_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    options = {"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}
    with pytest.raises(ConfigError, match="boxes of the heads become proposals"):
        _model({**STAGE2, FOLDER: str(tmp_path), **options})
    options = {
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": "['res4']",
        "MODEL.ROI_HEADS.IN_FEATURES": "['res4']",
        "MODEL.RPN.IN_FEATURES": "['res4']",
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[32]]",
    }
    with pytest.raises(ConfigError, match="with Res5ROIHeads"):
        _model({**STAGE2, FOLDER: str(tmp_path), **options})


def test_the_tool_trains_with_stored_regions(tmp_path: Path) -> None:
    run = write_run(tmp_path, SOLVER={"MAX_ITER": 2}, INPUT={"RANDOM_FLIP": "none"})
    words = ["--config-file", str(run.config_file), "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    assert main(words) == 0
    stage2 = [
        *("MODEL.WEIGHTS", str(run.output / "model_final.pth")),
        *("MODEL.CLASSIFIER_STAGE2.ENABLED", "True", FOLDER, str(tmp_path / "regions")),
        *("OUTPUT_DIR", str(tmp_path / "stage2"), "SOLVER.MAX_ITER", "4"),
    ]
    assert main([*words, *stage2]) == 0
    assert 1 <= len(list((tmp_path / "regions").rglob("*.pt"))) <= 4
    first, last = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (run.output, tmp_path / "stage2")
    )
    changed = {key for key, value in last.items() if not torch.equal(value, first[key])}
    assert changed
    assert all("cls_score" in key for key in changed)
