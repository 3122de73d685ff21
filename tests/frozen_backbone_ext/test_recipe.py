"""Schedules, averages, checks before training, and the second stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ext_common.config import finish_config, load_config, validate_config
from ext_common.data.label_table import LabelTable
from ext_common.errors import ConfigError, WeightsError
from ext_common.trainer import ExtTrainer
from frozen_backbone_ext.audit import parameter_shares
from frozen_backbone_ext.config_checks import check_frozen_backbone
from frozen_backbone_ext.losses.class_balanced import ClassBalancedSoftmax, class_balanced_weights
from frozen_backbone_ext.model_setup import set_up_backbone
from frozen_backbone_ext.pixel_statistics import check_pixels, timm_statistics
from frozen_backbone_ext.schedule import in_iterations
from frozen_backbone_ext.second_stage import balance_predictors, box_predictors, class_counts
from frozen_backbone_ext.train_hooks import MovingAverage
from tests.dist.tiny_training import TinyRun, write_run
from tests.frozen_backbone_ext.tiny_frozen import frozen_config, frozen_model, item, train_steps
from tools.train_net import main

FREEZE = ["MODEL.BACKBONE_FREEZE.POLICY", "trunk", "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM", "True"]


def test_schedules_of_the_release() -> None:
    short = in_iterations(72, 118_272, (48, 68), 32_000, 64)
    assert (short.max_iter, short.steps, short.warmup) == (133_056, (88_704, 125_664), 500)
    half = in_iterations(72, 118_272, (48, 68), 32_000, 32)
    assert half.max_iter == 2 * short.max_iter
    with pytest.raises(ConfigError, match="72 epochs of 0 images"):
        in_iterations(72, 0, (), 0, 1)
    path = Path(__file__).parents[2] / "configs/frozen_backbone/NASFPN_R50_frozen.yaml"
    cfg = load_config(path, ["SOLVER.IMS_PER_BATCH", "16"])
    as_written = cfg.clone()
    finish_config(cfg, training=False)
    assert cfg == as_written
    finish_config(cfg, training=True)
    assert pytest.approx(0.04) == cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.MAX_ITER == 532_224
    finished = cfg.clone()
    finish_config(cfg, training=True)
    cfg.freeze()
    check_frozen_backbone(cfg, training=True)
    assert cfg == finished
    cfg.defrost()
    cfg.SOLVER.ACCUMULATE = 4
    finish_config(cfg, training=True)
    assert cfg.SOLVER.MAX_ITER == 133_056
    cfg.SOLVER.LR_REFERENCE_BATCH = 64
    with pytest.raises(ConfigError, match="scales the rate as well"):
        finish_config(cfg, training=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.BACKBONE_FREEZE.ALLOW_RANDOM": False}, "it would stay random"),
        ({"MODEL.BACKBONE_FREEZE.SAVE": False}, "a file to take it from"),
        ({"MODEL.BACKBONE_FREEZE.PIXELS": "torchvision"}, "INPUT.FORMAT BGR should be RGB"),
        ({"MODEL.BACKBONE_FREEZE.PIXELS": "other"}, "unknown pixels 'other'"),
        (
            {
                "MODEL.BACKBONE.NAME": "build_timm_backbone",
                "MODEL.TIMM.BASE_NAME": "tf_efficientnet_b7.ap_in1k",
            },
            r"timm's tf_efficientnet_b7.ap_in1k.*127.5",
        ),
        (
            {
                "MODEL.BACKBONE.NAME": "build_pyramid_backbone",
                "DATALOADER.SAMPLER_TRAIN": "CopyPasteTrainingSampler",
                "INPUT.TRAIN_SIZE": 1000,
            },
            "1000 is no multiple of 128",
        ),
        ({"MODEL.CLASSIFIER_STAGE2.ENABLED": True}, "classifier of a trained detector"),
        (
            {
                "DATALOADER.SAMPLER_TRAIN": "CopyPasteTrainingSampler",
                "INPUT.CUSTOM_AUG": "DETR",
            },
            "not DETR",
        ),
    ],
    ids=["random", "save", "pixels", "kind", "timm", "size", "stage2", "augmentation"],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(frozen_config(changes), training=True)


def test_what_timm_says_about_its_weights() -> None:
    statistics = timm_statistics("resnetrs101.tf_in1k")
    assert statistics is not None
    assert statistics.mean == pytest.approx((123.675, 116.28, 103.53))
    assert timm_statistics("no_such_model") is None


def test_pixels_are_taken_from_the_weights_description() -> None:
    changes = {
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.TIMM.BASE_NAME": "tf_efficientnet_b7.ap_in1k",
        "MODEL.BACKBONE_FREEZE.PIXELS": "auto",
    }
    cfg = frozen_config(changes)
    with pytest.raises(ConfigError, match="127.5"):
        check_pixels(cfg)
    with pytest.raises(ConfigError, match="127.5"):
        set_up_backbone(cfg, nn.ModuleDict({"backbone": nn.Conv2d(3, 3, 1)}))
    finish_config(cfg, training=False)
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5, 127.5, 127.5]
    assert cfg.INPUT.FORMAT == "RGB"
    check_pixels(cfg)
    with pytest.raises(ConfigError, match="only weights that timm describes"):
        finish_config(frozen_config({"MODEL.BACKBONE_FREEZE.PIXELS": "auto"}), training=True)


def _average_run(folder: Path) -> TinyRun:
    return write_run(folder, SOLVER={"MAX_ITER": 2, "EMA": {"ENABLED": True, "DECAY": 0.5}})


def test_the_moving_average_is_that_of_the_trained_weights(tmp_path: Path) -> None:
    run = _average_run(tmp_path)
    assert main(["--config-file", str(run.config_file), *FREEZE]) == 0
    average = torch.load(run.output / "model_ema.pth", weights_only=True)["model"]
    final = torch.load(run.output / "model_final.pth", weights_only=True)
    assert set(average) == set(final["model"])
    different = {
        name for name, value in average.items() if not torch.equal(value, final["model"][name])
    }
    assert different
    assert not [name for name in different if "bottom_up" in name]
    assert not [name for name in final["ema"] if "bottom_up" in name]


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, 0.75)
    average.start()
    nn.init.constant_(model.weight, 5.0)
    average.update()
    assert average.state_dict()["weight"].item() == pytest.approx(2.0)
    average.load_state_dict({"weight": torch.tensor([[7.0]])})
    average.start()
    assert average.state_dict()["weight"].item() == 7.0
    with pytest.raises(ValueError, match="other weights"):
        average.load_state_dict({})


def test_a_random_trunk_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    cfg = load_config(run.config_file, ["MODEL.BACKBONE_FREEZE.POLICY", "trunk"])
    from ext_common.data.dataset_registry import register_from_config

    register_from_config(cfg)
    trainer = ExtTrainer(cfg)
    with pytest.raises(WeightsError, match="no weights were loaded into the frozen backbone"):
        trainer.train()


def test_checkpoints_without_the_trunk_resume(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    from frozen_backbone_ext.modeling.trunk import find_trunk
    from tests.frozen_backbone_ext.tiny_frozen import trained_looking

    cfg = load_config(run.config_file, FREEZE)
    from ext_common.modeling.build import build_model

    trunk = find_trunk(build_model(cfg))[1]
    trained_looking(trunk)
    weights = tmp_path / "trunk.pth"
    torch.save(dict(trunk.state_dict()), weights)
    words = ["--config-file", str(run.config_file)]
    freeze = [
        "MODEL.BACKBONE_FREEZE.POLICY", "trunk", "MODEL.BACKBONE_FREEZE.WEIGHTS", str(weights),
        "MODEL.BACKBONE_FREEZE.SAVE", "False",
    ]  # fmt: skip
    assert main([*words, *freeze, "SOLVER.TRAIN_ITER", "2"]) == 0
    saved = torch.load(run.output / "model_final.pth", weights_only=True)["model"]
    assert [name for name in saved if "bottom_up" in name] == ["backbone.bottom_up.frozen_hash"]
    resumed = [*words, "--resume", "--allow-change", "SOLVER.*", *freeze]
    assert main([*resumed, "SOLVER.TRAIN_ITER", "3"]) == 0


def test_only_classifiers_are_trained_in_the_second_stage() -> None:
    model = frozen_model({"MODEL.CLASSIFIER_STAGE2.ENABLED": True})
    counts = torch.tensor([100.0, 10.0, 0.0])
    balance_predictors(model, counts, 0.99, "mean")
    predictor = box_predictors(model)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        train_steps(model)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.bias",
    }
    assert max(tensor.numel() for tensor in saved) <= predictor.cls_score.weight.numel() * 10
    assert parameter_shares(model)[-1].trained == sum(
        p.numel() for p in predictor.cls_score.parameters()
    )
    proposals = item()["instances"]
    logits, deltas = torch.randn(1, 4), torch.zeros(1, 12)
    proposals.proposal_boxes = proposals.gt_boxes
    from detectron2.utils.events import EventStorage

    with EventStorage(0):
        loss = predictor.losses((logits, deltas), [proposals])["loss_cls"]
    twin = ClassBalancedSoftmax(class_balanced_weights(counts, 0.99))
    torch.testing.assert_close(loss, twin(logits, proposals.gt_classes))


def test_class_counts() -> None:
    table = LabelTable.of([[0, 0, 2], [0], []])
    assert class_counts(table, 4, "instances").tolist() == [3, 0, 1, 0]
    assert class_counts(table, 4, "images").tolist() == [2, 0, 1, 0]
    with pytest.raises(ConfigError, match="no objects to take class frequencies from"):
        class_counts(LabelTable.of([[], []]), 4, "images")
    with pytest.raises(ConfigError, match="unknown count"):
        class_counts(table, 4, "boxes")
