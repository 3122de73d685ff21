"""Classes and their frequencies on machines that have the training data, and on others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from detic_ext.modeling.class_list import class_frequencies, training_vocabulary
from ext_common.checkpoint import load_model_weights
from ext_common.data.dataset_checks import check_datasets
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import ConfigError, DatasetError, VocabularyError, WeightsError
from ext_common.predictor import Predictor
from ext_common.vocabulary import Vocabulary
from tests.detic_ext.tiny_model import NAMES, box_item, picture, tiny_config, tiny_model
from tests.dist.tiny_training import CLASSES, write_dataset

FED_LOSS = (
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    True,
    "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH",
    "none.json",
)


@pytest.fixture
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Callable[[], None], list]:
    """A registered dataset, what removes its files, and the options that name it."""
    name = f"class_list_{abs(hash(request.node.nodeid))}"
    registry = write_dataset(tmp_path / "data", name)
    opts = ["DATASETS.REGISTRY", f"('{registry}',)", "DATASETS.TRAIN", f"('{name}',)"]
    register_from_config(tiny_config(*opts))
    annotations = tmp_path / "data" / "instances.json"
    return name, annotations.unlink, opts


def save(model: Any, path: Path, *, with_names: bool = True) -> Path:
    state = {"model": model.state_dict()}
    if with_names:
        state["vocabulary"] = model.vocabulary.state_dict()
    torch.save(state, path)
    return path


def test_without_the_training_data_the_checkpoint_says_the_classes(
    dataset: tuple[str, Callable[[], None], list], tmp_path: Path
) -> None:
    name, remove, opts = dataset
    opts = [*opts, *FED_LOSS, "MODEL.VOCABULARY", f"dataset:{name}"]
    trained = tiny_model(*opts).eval()
    assert trained.vocabulary.names == CLASSES
    weights = save(trained, tmp_path / "model.pth")
    remove()
    inputs = [{"image": picture(64), "height": 64, "width": 64}]
    with pytest.raises(DatasetError, match="instances.json"):
        tiny_model(*opts)
    cfg = tiny_config(*opts, "MODEL.WEIGHTS", weights)
    model = build_model(cfg).eval()
    assert load_model_weights(model, weights).complete
    assert model.vocabulary == trained.vocabulary
    assert Predictor(cfg).class_names == CLASSES
    with torch.no_grad():
        ours, theirs = model(inputs)[0]["instances"], trained(inputs)[0]["instances"]
    assert_close(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    # the frequencies came along, so that even training can go on
    assert_close(
        model.roi_heads.predictors[0].freq_weight, trained.roi_heads.predictors[0].freq_weight
    )


def test_an_unregistered_dataset_is_as_good_as_a_missing_one(tmp_path: Path) -> None:
    weights = save(tiny_model(), tmp_path / "model.pth")
    cfg = tiny_config("MODEL.VOCABULARY", "dataset:elsewhere", "MODEL.WEIGHTS", weights)
    vocabulary = training_vocabulary(cfg)
    assert vocabulary is not None
    assert vocabulary.names == NAMES


def test_a_checkpoint_without_names_does_not_help(tmp_path: Path) -> None:
    weights = save(tiny_model(), tmp_path / "model.pth", with_names=False)
    for opts in (("MODEL.WEIGHTS", weights), ()):
        cfg = tiny_config("MODEL.VOCABULARY", "dataset:elsewhere", *opts)
        with pytest.raises(VocabularyError, match="elsewhere"):
            training_vocabulary(cfg)


def test_other_mistakes_are_not_papered_over(tmp_path: Path) -> None:
    weights = save(tiny_model(), tmp_path / "model.pth")
    cfg = tiny_config("MODEL.VOCABULARY", "names.txt", "MODEL.WEIGHTS", weights)
    with pytest.raises(VocabularyError, match="no such file"):
        training_vocabulary(cfg)


def test_an_embedding_file_needs_no_vocabulary(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float16)
    np.save(tmp_path / "classes.npy", rows)
    path = "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH"
    vocabulary = training_vocabulary(
        tiny_config("MODEL.VOCABULARY", "", path, tmp_path / "classes.npy")
    )
    assert vocabulary is not None
    assert_close(vocabulary.embeddings_CD, torch.from_numpy(rows).float())
    missing = ("MODEL.VOCABULARY", "", path, tmp_path / "gone.npy")
    with pytest.raises(WeightsError, match="no such embedding file"):
        training_vocabulary(tiny_config(*missing))
    # the checkpoint has the columns
    weights = tmp_path / "model.pth"
    assert training_vocabulary(tiny_config(*missing, "MODEL.WEIGHTS", weights)) is None


def test_frequencies_come_from_the_file_or_else_from_the_training_data(
    dataset: tuple[str, Callable[[], None], list], tmp_path: Path
) -> None:
    _, remove, opts = dataset
    file = tmp_path / "counts.json"
    file.write_text(json.dumps([{"id": 2, "image_count": 16}, {"id": 1, "image_count": 9}]))
    with_file = tiny_config(*opts, "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", file)
    without = tiny_config(*opts, "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", "none.json")
    assert class_frequencies(with_file, 3).tolist() == [3, 4, 0]
    assert class_frequencies(without, 2).tolist() == [2, 2]  # both on all four pictures
    # a file of more classes is of another vocabulary
    file.write_text(json.dumps([{"id": i, "image_count": 1} for i in range(5)]))
    assert class_frequencies(with_file, 2).tolist() == [2, 2]
    # and so are training data of more
    assert class_frequencies(without, 1) is None
    model = tiny_model(*opts, *FED_LOSS, "MODEL.VOCABULARY", "red square")
    assert model.roi_heads.predictors[0].freq_weight.tolist() == [0]
    remove()
    assert class_frequencies(without, 2) is None


def test_detection_needs_no_frequencies_and_training_says_that_it_does() -> None:
    model = tiny_model(*FED_LOSS)
    with torch.no_grad():
        model.eval()([{"image": picture(64), "height": 64, "width": 64}])
    with EventStorage(0), pytest.raises(ConfigError, match="CAT_FREQ_PATH"):
        model.train()([box_item()])
    for predictor in model.roi_heads.predictors:  # as a checkpoint would
        predictor.freq_weight.fill_(1.0)
    with EventStorage(0):
        assert float(model([box_item()])["loss_cls_stage0"].detach()) > 0


def test_rows_of_an_embedding_file_keep_their_own_names(
    dataset: tuple[str, Callable[[], None], list], tmp_path: Path
) -> None:
    """A dataset in another order would rename them, and train and report swapped classes."""
    name, _, opts = dataset
    swapped = CLASSES[::-1]
    file = tmp_path / "classes.npz"
    key = "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH"
    opts = [*opts, "MODEL.VOCABULARY", "", key, file, "MODEL.ROI_HEADS.NUM_CLASSES", 2]
    Vocabulary.from_embeddings(swapped, torch.eye(2, 16), "x").save(file)
    cfg = tiny_config(*opts)
    found = training_vocabulary(cfg)
    assert found is not None
    assert found.names == swapped
    message = f"'{name}': class 0 is 'disc' here and 'square' in {key}"
    with pytest.raises(DatasetError, match=message):
        check_datasets(cfg, training=True)
    Vocabulary.from_embeddings(CLASSES, torch.eye(2, 16), "x").save(file)
    check_datasets(cfg, training=True)
    # rows without names have the dataset's
    np.save(tmp_path / "classes.npy", np.eye(2, 16, dtype=np.float32))
    found = training_vocabulary(tiny_config(*opts, key, tmp_path / "classes.npy"))
    assert found is not None
    assert found.names == CLASSES
