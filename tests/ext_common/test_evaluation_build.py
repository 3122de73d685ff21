"""From a dataset's name to its evaluator, and gathering over processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ext_common.config import get_config
from ext_common.errors import DatasetError
from ext_common.evaluation import build_evaluator, register_evaluator
from ext_common.evaluation.coco import CocoEvaluator
from ext_common.evaluation.lvis import LvisEvaluator
from ext_common.evaluation.proposal_recall import ProposalRecallEvaluator
from ext_common.registries import EVALUATOR_REGISTRY
from tests.ext_common.evaluation_cases import (
    random_content,
    random_predictions,
    registered,
    run,
)
from tests.ext_common.evaluation_worker import evaluate_half


@pytest.mark.parametrize(
    ("kind", "evaluator_class"),
    [
        ("coco", CocoEvaluator),
        ("lvis", LvisEvaluator),
        ("proposal_recall", ProposalRecallEvaluator),
    ],
)
def test_dispatch(tmp_path, kind, evaluator_class):
    with registered(tmp_path, random_content(1)) as name:
        MetadataCatalog.get(name).evaluator_type = "coco"  # what detectron2's registration sets
        cfg = get_config()
        assert type(build_evaluator(cfg, name)) is CocoEvaluator
        MetadataCatalog.pop(name)
        path = str(tmp_path / f"{name}.json")
        MetadataCatalog.get(name).set(json_file=path, evaluator_type=kind)
        assert type(build_evaluator(cfg, name)) is evaluator_class


def test_recall_of_proposals_beside_the_datasets_own_scores(tmp_path):
    content = random_content(1)
    cfg = get_config()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.EVAL_PROPOSAL_AR = True
    with registered(tmp_path, content) as name:
        results = run(build_evaluator(cfg, name), random_predictions(content, 1))
        assert {"bbox", "box_proposals"} <= results.keys()
        assert results["box_proposals"]["AR@100"] > 0
        MetadataCatalog.pop(name)
        path = str(tmp_path / f"{name}.json")
        MetadataCatalog.get(name).set(json_file=path, evaluator_type="proposal_recall")
        assert type(build_evaluator(cfg, name)) is ProposalRecallEvaluator


def test_default_and_chosen_folder(tmp_path):
    content = random_content(1)
    predictions = random_predictions(content, 1)
    cfg = get_config()
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with registered(tmp_path, content) as name:
        run(build_evaluator(cfg, name), predictions)
        run(build_evaluator(cfg, name, tmp_path / "chosen"), predictions)
    default = tmp_path / "output" / "inference_made" / "coco_instances_results.json"
    chosen = tmp_path / "chosen" / "coco_instances_results.json"
    assert json.loads(default.read_text()) == json.loads(chosen.read_text()) != []


def test_unknown_type_lists_the_known(tmp_path):
    with registered(tmp_path, random_content(1)) as name:
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).evaluator_type = "imagenet"
        with pytest.raises(DatasetError, match=r"'imagenet' has no evaluator") as caught:
            build_evaluator(get_config(), name)
        assert "'made'" in str(caught.value)
        assert "coco" in caught.value.fix
        assert "lvis" in caught.value.fix
        MetadataCatalog.pop(name)
        with pytest.raises(DatasetError, match="no evaluator_type is set"):
            build_evaluator(get_config(), name)


def test_unknown_dataset():
    with pytest.raises(DatasetError, match="unknown dataset 'nowhere'"):
        build_evaluator(get_config(), "nowhere")


def test_registering_another_type(tmp_path):
    @register_evaluator("made_type")
    def build(cfg, dataset_name, folder):
        return cfg.OUTPUT_DIR, dataset_name, folder

    try:
        with registered(tmp_path, random_content(1)) as name:
            MetadataCatalog.pop(name)
            MetadataCatalog.get(name).evaluator_type = "made_type"
            expected = ("./output", "made", str(Path("output", "inference_made")))
            assert build_evaluator(get_config(), name) == expected
    finally:
        EVALUATOR_REGISTRY._obj_map.pop("made_type")


def test_import_is_cheap():
    code = "import sys, ext_common.evaluation; print('torch' in sys.modules, 'detectron2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_two_processes_equal_one(tmp_path):
    assert comm.get_world_size() == 1
    content = random_content(3, federated=True)
    with registered(tmp_path, content) as name:
        alone = run(LvisEvaluator(name), random_predictions(content, 4, masks=True))
    torch.multiprocessing.spawn(evaluate_half, (str(tmp_path),), nprocs=2)
    main = json.loads((tmp_path / "0.json").read_text())
    assert list(main) == ["bbox", "segm"]
    for task, metrics in alone.items():
        assert main[task] == pytest.approx(metrics, abs=1e-9, nan_ok=True)
    assert json.loads((tmp_path / "1.json").read_text()) == {}
