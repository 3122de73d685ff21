from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor, HookBase
from torch import nn

from ext_common import packages
from ext_common import trainer as trainer_module
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import ConfigError, DatasetError, ExtError, WeightsError
from ext_common.registries import TRAIN_HOOK_REGISTRY, TRAIN_LOADER_REGISTRY
from ext_common.trainer import ExtTrainer, evaluate, first_batches, flat_results
from tests.dist.tiny_training import CLASSES, write_run

LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    packages.register_all()
    run = write_run(tmp_path)
    cfg = load_config(run.config_file)
    register_from_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def trained(cfg: CfgNode, *, resume: bool = False) -> ExtTrainer:
    trainer = ExtTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def metrics(cfg: CfgNode) -> list[dict[str, Any]]:
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_training_writes_metrics_checkpoints_and_events(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 3
    before = weights(ExtTrainer(cfg).model)
    trainer = trained(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    saved = {path.name for path in folder.glob("*.pth")}
    assert saved == {"model_0000001.pth", "model_final.pth"}
    assert list(folder.glob("events.out.tfevents.*"))
    last = metrics(cfg)[-1]
    assert {"iteration", "lr", "total_loss", "data_time", "time", *LOSSES} <= last.keys()
    assert last["iteration"] == 2
    after = weights(trainer.model)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_the_same_seed_gives_the_same_weights(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    first = weights(trained(cfg).model)
    cfg.OUTPUT_DIR += "_again"
    assert_equal(first, weights(trained(cfg).model))


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(cfg: CfgNode) -> None:
    whole = trained(cfg)
    cfg.OUTPUT_DIR += "_stopped"
    cfg.SOLVER.TRAIN_ITER = 2
    trained(cfg)
    cfg.SOLVER.TRAIN_ITER = -1
    resumed = trained(cfg, resume=True)
    assert resumed.start_iter == 2
    assert_equal(weights(whole.model), weights(resumed.model))
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_reset_iter_keeps_weights_and_restarts_the_schedule(cfg: CfgNode) -> None:
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    done = trained(cfg)
    cfg.SOLVER.RESET_ITER = True
    trainer = ExtTrainer(cfg)
    fresh_lr = trainer.optimizer.param_groups[0]["lr"]
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert trainer.optimizer.param_groups[0]["lr"] == fresh_lr
    assert trainer.optimizer.state_dict()["state"]
    assert_equal(weights(done.model), weights(trainer.model))


def test_a_finished_run_has_nothing_left(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    done = trained(cfg)
    lines = len(metrics(cfg))
    again = trained(cfg, resume=True)
    assert_equal(weights(done.model), weights(again.model))
    assert len(metrics(cfg)) == lines


def test_resume_without_a_checkpoint_starts_from_the_weights(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    done = trained(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.OUTPUT_DIR += "_next"
    trainer = ExtTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert_equal(weights(done.model), weights(trainer.model))


def test_weights_of_another_model_stop_before_training(cfg: CfgNode, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="none of its tensors"):
        ExtTrainer(cfg).resume_or_load(resume=False)


def test_evaluation_during_training_reaches_metrics_and_results(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 2
    cfg.TEST.EVAL_PERIOD = 1
    cfg.DATASETS.TEST = (cfg.DATASETS.TRAIN[0].replace("train", "val"),)
    trainer = trained(cfg)
    (name,) = cfg.DATASETS.TEST
    assert "AP50" in trainer.results[name]["bbox"]
    assert trainer.model.training
    evaluated = [line for line in metrics(cfg) if "bbox/AP50" in line]
    assert len(evaluated) == 2
    assert flat_results({"a": {"bbox": {}}, "b": {}}) == {"a": {"bbox": {}}, "b": {}}


def test_the_best_model_is_kept_across_a_resume(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([5.0, float("nan"), 3.0, 4.0, 6.0])

    def scored(*_: object) -> Any:
        return {"val": {"bbox": {"AP50": next(scores)}}}

    monkeypatch.setattr(trainer_module, "evaluate", scored)
    cfg.SOLVER.MAX_ITER = 3
    cfg.TEST.EVAL_PERIOD = 1
    cfg.SOLVER.CHECKPOINT_KEEP_BEST = "bbox/AP50"
    with pytest.raises(ConfigError, match="CHECKPOINT_KEEP_BEST"):
        ExtTrainer(cfg)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    trained(cfg)
    best = Path(cfg.OUTPUT_DIR) / "model_best.pth"
    assert torch.load(best)["iteration"] == 0
    cfg.SOLVER.MAX_ITER = 5
    assert trained(cfg, resume=True).start_iter == 3
    assert torch.load(best)["iteration"] == 4  # 4.0 after the resume did not beat 5.0


@pytest.mark.parametrize("metric", ["AP50", "bbox/", "/AP50"])
def test_a_metric_without_its_task_is_refused(cfg: CfgNode, metric: str) -> None:
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    cfg.SOLVER.CHECKPOINT_KEEP_BEST = metric
    with pytest.raises(ConfigError, match="task/metric"):
        ExtTrainer(cfg)


def test_older_checkpoints_go_and_bad_samples_are_counted(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.CHECKPOINT_KEEP_LAST = 2
    (tmp_path / "data" / "images" / "1.png").write_bytes(b"broken")
    trained(cfg)
    assert trained_names(cfg) == {"model_0000003.pth", "model_0000005.pth", "model_final.pth"}
    last = metrics(cfg)[-1]
    assert last["bad_samples"] == 3  # 12 samples of 4 images
    assert last["bad_sample_share"] == pytest.approx(3 / 15)


def test_the_state_of_hooks_is_saved(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    class Average(HookBase):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1

        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps = state["steps"]

    made: list[Average] = []

    def build(_cfg: CfgNode, _trainer: ExtTrainer) -> list[HookBase]:
        made.append(Average())
        return [made[-1]]

    # registered as a package does it: what it counts in a step is in the checkpoint of that step
    monkeypatch.setitem(TRAIN_HOOK_REGISTRY._obj_map, "average", build)
    cfg.SOLVER.MAX_ITER = 1
    trained(cfg)
    cfg.SOLVER.MAX_ITER = 2
    trained(cfg, resume=True)
    assert [hook.steps for hook in made] == [1, 2]


def test_statistics_are_always_measured_on_the_same_batches(cfg: CfgNode) -> None:
    batches = itertools.islice(first_batches(cfg, 2), 5)
    seen = [[(item["image_id"], float(item["image"].sum())) for item in batch] for batch in batches]
    assert seen[0] != seen[1]
    assert seen[2:] == [seen[0], seen[1], seen[0]]
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = 1
    cfg.SOLVER.MAX_ITER = 1
    cfg.MODEL.RESNETS.NORM = "BN"
    before = weights(ExtTrainer(cfg).model)
    after = weights(trained(cfg).model)
    name = "backbone.bottom_up.stem.conv1.norm.running_mean"
    assert not torch.equal(before[name], after[name])


def test_an_unknown_test_dataset_is_told_before_any_image_is_read(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ("nowhere_val",)
    with pytest.raises(DatasetError, match="nowhere_val"):
        evaluate(cfg, nn.Linear(1, 1))


def test_detectron2s_predictor_reads_what_was_trained(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    trainer = trained(cfg)
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    assert_equal(weights(trainer.model), weights(predictor.model))
    found = predictor(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy())["instances"]
    assert found.image_size == (64, 64)
    assert all(int(class_id) < len(CLASSES) for class_id in found.pred_classes)


class ThreeBatches:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.fixture
def three_batches(cfg: CfgNode) -> Iterator[CfgNode]:
    """A loader of somebody else's, without state, that ends too early."""
    batches = iter(ExtTrainer(cfg).data_loader)
    ready = [next(batches) for _ in range(3)]
    TRAIN_LOADER_REGISTRY._do_register("ThreeBatches", lambda _: ThreeBatches(ready))
    cfg.DATALOADER.SAMPLER_TRAIN = "ThreeBatches"
    yield cfg
    del TRAIN_LOADER_REGISTRY._obj_map["ThreeBatches"]


def test_a_registered_loader_is_used_and_must_not_end(
    three_batches: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(DatasetError, match="before iteration 3"):
        trained(three_batches)
    assert len(metrics(three_batches)) > 0
    # an expected error explains itself: the log has its text and no traceback
    assert "Training stopped: the training loader ended" in caplog.text
    assert all(record.exc_info is None for record in caplog.records)
    assert trained_names(three_batches) == {"model_0000001.pth"}


def trained_names(cfg: CfgNode) -> set[str]:
    return {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}


def test_after_an_error_in_the_last_iteration_nothing_is_evaluated(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    trainer = ExtTrainer(cfg)

    def fail(*_: object) -> None:
        raise ExtError("stop here")

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(ExtError, match="stop here"):
        trainer.train()
    assert trainer.results == {}
    assert trained_names(cfg) == set()


def test_training_in_bfloat16_works_on_cpu(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER = 1
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    trained(cfg)
    assert metrics(cfg)[-1].keys() >= LOSSES
