"""Every test set with its own classes (specification section 2, cross-dataset evaluation)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

import detic_ext  # noqa: F401 - registers the configuration keys
from ext_common.data.dataset_checks import check_datasets, check_test_dataset
from ext_common.data.dataset_registry import register_from_config, unregister
from ext_common.errors import ConfigError, DatasetError, VocabularyError
from ext_common.evaluation.vocabularies import WithClassifier, with_test_vocabularies
from ext_common.text_encoder import HashTextEncoder
from ext_common.trainer import evaluate
from tests.detic_ext.tiny_model import NAMES, tiny_config, tiny_model
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.ext_common.tiny_detectors import tiny_config as plain_config

TWO = ("yellow cross", "red square")
SEVEN = tuple(f"thing {number}" for number in range(7))
MODEL_OPTS = ("MODEL.ROI_HEADS.NUM_CLASSES", len(NAMES))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Test sets vt_two and vt_seven, training set vt_train; embeddings of vt_seven as published."""
    sets = {}
    for name, classes in (("vt_two", TWO), ("vt_seven", SEVEN), ("vt_train", NAMES)):
        labels = [box(1, 1, 10, [2, 2, 20, 20]), box(2, 1, 11, [30, 8, 24, 30])]
        data = content([(64, 64)], labels, classes)
        write(tmp_path / f"{name}.json", data)
        write_images(tmp_path / name, data)
        sets[name] = {"type": "coco", "json": f"{name}.json", "images": name}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"datasets": sets}))
    rows_CD = HashTextEncoder(16).encode(SEVEN).numpy() * 9
    np.save(tmp_path / "seven.npy", rows_CD.astype(np.float16))
    yield tmp_path
    for name in sets:
        unregister(name)


def config(folder: Path, *opts: Any) -> CfgNode:
    cfg = tiny_config(
        "DATASETS.REGISTRY", f"('{folder / 'sets.yaml'}',)",
        "DATASETS.TRAIN", "('vt_train',)",
        "DATASETS.TEST", "('vt_two','vt_seven')",
        "MODEL.RESET_CLS_TESTS", True,
        "MODEL.TEST_CLASSIFIERS", ["dataset:vt_two", str(folder / "seven.npy")],
        "MODEL.TEST_NUM_CLASSES", "[2, 7]",
        "MODEL.MASK_ON", False,
        "INPUT.MIN_SIZE_TEST", 64,
        "DATALOADER.NUM_WORKERS", 0,
        "OUTPUT_DIR", str(folder / "output"),
        *MODEL_OPTS,
        *opts,
    )  # fmt: skip
    register_from_config(cfg)
    return cfg


def model_of(cfg: CfgNode) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def detections(model: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        return model([{"image": image, "height": 64, "width": 64}])[0]["instances"]


def test_each_set_is_asked_for_its_own_classes(folder: Path) -> None:
    cfg = config(folder)
    model = model_of(cfg).eval()
    own = detections(model)

    tested = dict(with_test_vocabularies(cfg, model))

    assert list(tested) == ["vt_two", "vt_seven"]
    for name, classes in (("vt_two", TWO), ("vt_seven", SEVEN)):
        # a model that was built for those classes
        expected = model_of(config(folder, "MODEL.VOCABULARY", ",".join(classes))).eval()
        rest = {k: v for k, v in model.state_dict().items() if "zs_weight" not in k}
        expected.load_state_dict(rest, strict=False)
        want, got = detections(expected), detections(tested[name])
        assert len(got) == len(want) > 0
        assert got.pred_classes.max() < len(classes)
        # the published file has float16 rows
        torch.testing.assert_close(got.scores, want.scores, rtol=1e-3, atol=1e-3)
    assert set(detections(tested["vt_seven"]).pred_classes.tolist()) - {0, 1}
    torch.testing.assert_close(detections(model).scores, own.scores, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(folder: Path, training: bool) -> None:
    cfg = config(folder)
    model = model_of(cfg).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    results = evaluate(cfg, model)

    assert {name: set(found) for name, found in results.items()} == {
        "vt_two": {"bbox"},
        "vt_seven": {"bbox"},
    }
    assert model.training is training
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.vocabulary.names == NAMES


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST_NUM_CLASSES", [2], r"TEST_NUM_CLASSES: 1 entries for 2 test sets"),
        ("TEST_CLASSIFIERS", ["dataset:vt_two"], r"TEST_CLASSIFIERS: 1 entries for 2 test sets"),
        ("TEST_NUM_CLASSES", [2, 8], r"'vt_seven': .*seven\.npy has 7 classes, .* says 8"),
        ("TEST_CLASSIFIERS", ["dataset:vt_two", "a, b, c"], "3 classes, .*_CLASSES says 7"),
    ],
)
def test_numbers_that_do_not_fit_are_told_before_inference(
    folder: Path, key: str, value: list[Any], message: str
) -> None:
    cfg = config(folder)
    cfg.MODEL[key] = value
    with pytest.raises(ConfigError, match=message):
        evaluate_off(cfg)
    # a training that would end in such an evaluation does not start
    with pytest.raises(ConfigError, match=message):
        check_datasets(cfg, training=True)


def evaluate_off(cfg: CfgNode) -> None:
    """Evaluation with a model that must not be run."""
    model = tiny_model()
    model.forward = None  # type: ignore[assignment,method-assign]
    evaluate(cfg, model)


def test_the_test_sets_classes_are_counted_without_test_num_classes(folder: Path) -> None:
    cfg = config(folder)
    cfg.MODEL.TEST_NUM_CLASSES = []
    cfg.MODEL.TEST_CLASSIFIERS = [str(folder / "seven.npy"), "dataset:vt_two"]
    with pytest.raises(ConfigError, match="'vt_two': .*7 classes, the test set has 2") as error:
        evaluate_off(cfg)
    assert "dataset:vt_two" in error.value.fix


def test_named_classes_in_another_order_are_refused(folder: Path) -> None:
    cfg = config(folder)
    cfg.MODEL.TEST_CLASSIFIERS = ["red square, yellow cross", str(folder / "seven.npy")]
    with pytest.raises(DatasetError, match="'vt_two': class 0 is 'yellow cross' here"):
        evaluate_off(cfg)


def test_without_lists_each_set_has_its_own_names(folder: Path) -> None:
    cfg = config(folder)
    cfg.MODEL.TEST_CLASSIFIERS = cfg.MODEL.TEST_NUM_CLASSES = []
    columns = [
        tested.classifier_DK.shape[1] for _, tested in with_test_vocabularies(cfg, tiny_model())
    ]
    assert columns == [3, 8]


def test_models_with_fixed_classes_are_refused(folder: Path) -> None:
    cfg = config(folder)
    fixed = build_model(plain_config())
    with pytest.raises(ConfigError, match="GeneralizedRCNN has a fixed list of classes"):
        evaluate(cfg, fixed)


def test_without_the_key_other_classes_are_an_error(folder: Path) -> None:
    cfg = config(folder)
    cfg.MODEL.RESET_CLS_TESTS = False
    model = tiny_model()
    assert [tested for _, tested in with_test_vocabularies(cfg, model)] == [model, model]
    with pytest.raises(DatasetError, match=r"'vt_two': 2 classes, but MODEL\.VOCABULARY stands"):
        evaluate_off(cfg)


def test_embeddings_of_another_width_are_refused(folder: Path) -> None:
    cfg = config(folder)
    np.save(folder / "seven.npy", np.ones((7, 5), dtype=np.float16))
    with pytest.raises(VocabularyError, match=r"embeddings of shape \[7, 5\], expected \[7, 16\]"):
        evaluate_off(cfg)


def test_the_dataset_of_the_training_classes_need_not_be_here(folder: Path) -> None:
    cfg = config(folder, "MODEL.VOCABULARY", "dataset:vt_elsewhere")
    cfg.MODEL.RESET_CLS_TESTS = False
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(VocabularyError, match="no dataset 'vt_elsewhere' is registered"):
        check_test_dataset(cfg, "vt_two")
    trained = tiny_model()
    path = folder / "model.pth"
    torch.save({"model": trained.state_dict(), "vocabulary": trained.vocabulary.state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)

    check_test_dataset(cfg, "vt_train")
    assert len(MetadataCatalog.get("vt_train").thing_classes) == len(NAMES)
    with pytest.raises(DatasetError, match=r"'vt_two': 2 classes, but MODEL\.VOCABULARY stands"):
        check_test_dataset(cfg, "vt_two")


def test_a_wrapped_model_has_the_mode_of_the_model() -> None:
    model = tiny_model().eval()
    assert not WithClassifier(model, torch.zeros(16, 3)).training
    assert not model.training
