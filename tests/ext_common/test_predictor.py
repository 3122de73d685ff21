"""Predictor against detectron2's DefaultPredictor, in batches, with vocabularies, from threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ext_common.errors import ConfigError, ImageError, VocabularyError, WeightsError
from ext_common.predictor import Predictor, aspect_batches
from ext_common.results import Detections, decode_mask
from ext_common.vocabulary import Vocabulary
from tests.ext_common.tiny_detectors import (
    CLASSES,
    COLORS,
    DIM,
    color_config,
    save_random_weights,
    tiny_config,
)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def plain_color(name: str, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), COLORS[name], dtype=np.uint8)


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize(
    ("architecture", "masks", "order"),
    [
        ("GeneralizedRCNN", True, "BGR"),
        ("GeneralizedRCNN", False, "RGB"),
        ("RetinaNet", False, "BGR"),
    ],
)
def test_agrees_with_default_predictor(
    tmp_path: Path, architecture: str, masks: bool, order: str
) -> None:
    cfg = tiny_config(architecture, masks=masks)
    cfg.INPUT.FORMAT = order
    save_random_weights(cfg, tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.jpg"
    Image.fromarray(photo(70, 110)).save(path, exif=exif)
    bgr = detection_utils.read_image(str(path), "BGR")

    expected = DefaultPredictor(cfg)(bgr)["instances"]
    predictor = Predictor(cfg)
    for picture in (path, path.read_bytes(), bgr):
        (found,) = predictor([picture])
        assert len(found) == len(expected) > 0
        assert found.image_size == (110, 70)
        np.testing.assert_allclose(found.boxes_R4, expected.pred_boxes.tensor, atol=1e-4)
        np.testing.assert_allclose(found.scores_R, expected.scores, atol=1e-6)
        assert found.class_ids_R.tolist() == expected.pred_classes.tolist()
        assert found.class_names == CLASSES
        if masks:
            assert found.masks is not None
            for rle, mask in zip(found.masks, expected.pred_masks, strict=True):
                np.testing.assert_array_equal(decode_mask(rle), mask.numpy())
    (from_rgb,) = predictor([bgr[:, :, ::-1]], array_format="RGB", file_names=["mine"])
    np.testing.assert_allclose(from_rgb.boxes_R4, expected.pred_boxes.tensor, atol=1e-4)
    assert from_rgb.file_name == "mine"


def test_square_test_input() -> None:
    """The resizing is that of the configuration: a 2:1 picture fills half of the square."""
    cfg = color_config()
    cfg.INPUT.TEST_INPUT_TYPE, cfg.INPUT.TEST_SIZE = "square", 96
    model = build_model(cfg)
    shapes = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0][0]["image"].shape)))
    Predictor(cfg, model=model)([plain_color("red", 10, 20)])
    assert shapes == [(3, 48, 96)]


def assert_same(left: Detections, right: Detections) -> None:
    assert left.file_name == right.file_name
    np.testing.assert_allclose(left.boxes_R4, right.boxes_R4, atol=1e-3)
    np.testing.assert_allclose(left.scores_R, right.scores_R, atol=1e-5)
    assert left.class_ids_R.tolist() == right.class_ids_R.tolist()


def test_batches_give_what_single_pictures_give(weights_folder: Path) -> None:
    cfg = tiny_config()
    save_random_weights(cfg, weights_folder)
    predictor = Predictor(cfg)
    pictures = [photo(60, 90, seed) for seed in range(5)]
    names = [f"{i}.jpg" for i in range(5)]
    single = [
        predictor([picture], file_names=[name])[0]
        for picture, name in zip(pictures, names, strict=True)
    ]
    assert sum(len(result) for result in single) > 5
    for batch_size in (2, 5, 8):
        results = predictor(pictures, batch_size=batch_size, file_names=names)
        for left, right in zip(single, results, strict=True):
            assert_same(left, right)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=12),
    batch_size=st.integers(1, 5),
)
def test_aspect_batches_hold_everything_once_in_order_of_aspect(
    sizes: list[tuple[int, int]], batch_size: int
) -> None:
    batches = aspect_batches(sizes, batch_size)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(sizes)))
    aspects = [sizes[index][0] / sizes[index][1] for index in flat]
    assert aspects == sorted(aspects)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_results_come_in_the_order_of_the_pictures() -> None:
    colors = ["red", "green", "red", "green"]
    shapes = [(10, 90), (90, 10), (50, 50), (80, 30)]
    pictures = [plain_color(name, *shape) for name, shape in zip(colors, shapes, strict=True)]
    results = Predictor(color_config())(pictures, batch_size=3, array_format="RGB")
    assert [result.names for result in results] == [(name,) for name in colors]
    assert [result.image_size for result in results] == shapes


def test_no_pictures_and_no_detections() -> None:
    predictor = Predictor(color_config())
    assert predictor([]) == []
    (found,) = predictor([plain_color("blue")], array_format="RGB", threshold=0.9)
    assert len(found) == 0
    assert found.image_size == (20, 30)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 700)])
def test_extreme_shapes_keep_boxes_inside(weights_folder: Path, shape: tuple[int, int]) -> None:
    cfg = tiny_config()
    save_random_weights(cfg, weights_folder)
    (found,) = Predictor(cfg)([photo(*shape)])
    assert found.image_size == shape
    assert (found.boxes_R4 >= 0).all()
    assert (found.boxes_R4 <= np.array([shape[1], shape[0], shape[1], shape[0]])).all()
    (whole,) = Predictor(color_config())([plain_color("red", *shape)], array_format="RGB")
    assert whole.boxes_R4.tolist() == [[0, 0, shape[1], shape[0]]]


# ---- vocabularies


def test_vocabulary_of_the_call_not_of_the_model() -> None:
    model = build_model(color_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = Predictor(color_config(), model=model)
    other = own.with_vocabulary(Vocabulary.from_names(["blue sky", "red brick", "green leaf"]))
    third = Predictor(color_config(), model=model, vocabulary=Vocabulary.from_names(["red", "sky"]))

    pictures = [plain_color("red"), plain_color("green")]
    assert [r.names for r in own(pictures, array_format="RGB")] == [("red",), ("green",)]
    assert [r.names for r in other(pictures, array_format="RGB")] == [
        ("red brick",),
        ("green leaf",),
    ]
    assert third([pictures[0]], array_format="RGB")[0].names == ("red",)
    assert own.class_names == ("green", "red")
    assert other.class_names == ("blue sky", "red brick", "green leaf")
    assert other.model is own.model is third.model
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.vocabulary.names == ("green", "red")


def test_vocabularies_from_several_threads() -> None:
    shared = Predictor(color_config())
    lists = [["red", "green", "blue"], ["blue", "red"], ["green", "x", "y", "red"], ["red"]]
    predictors = [shared.with_vocabulary(Vocabulary.from_names(names)) for names in lists]

    def work(index: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        found = [predictors[index]([plain_color("red")], array_format="RGB")[0] for _ in range(20)]
        return [(result.names, result.class_names) for result in found]

    with ThreadPoolExecutor(4) as pool:
        for names, results in zip(lists, pool.map(work, range(4)), strict=True):
            assert set(results) == {(("red",), tuple(names))}


def test_given_embeddings_are_used_as_they_are() -> None:
    predictor = Predictor(color_config())
    red_as_second = torch.stack([torch.ones(DIM), predictor.model.encoder.encode(["red"])[0] * 9])
    vocabulary = Vocabulary.from_embeddings(["first", "second"], red_as_second, "mine")
    (found,) = predictor.with_vocabulary(vocabulary)([plain_color("red")], array_format="RGB")
    assert found.names == ("second",)


def test_plain_model_takes_no_vocabulary() -> None:
    with pytest.raises(VocabularyError, match="GeneralizedRCNN has a fixed list of classes"):
        Predictor(
            tiny_config(), model=build_model(tiny_config()), vocabulary=Vocabulary.from_names(["a"])
        )


def test_names_of_another_number_are_refused() -> None:
    cfg = tiny_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    with pytest.raises(VocabularyError, match="5 classes.*tiny_three_classes.* 3 names"):
        Predictor(cfg, model=build_model(cfg))
    cfg.DATASETS.TEST = ("never_registered",)
    with pytest.raises(VocabularyError, match="no names.*DATASETS.TEST"):
        Predictor(cfg, model=build_model(cfg))


def test_names_recorded_in_the_checkpoint(tmp_path: Path) -> None:
    cfg = tiny_config()
    names = ["alpha", "beta", "gamma"]
    path = tmp_path / "with_names.pth"
    state = {"model": build_model(cfg).state_dict()}
    torch.save({**state, "vocabulary": Vocabulary.from_names(names).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    assert Predictor(cfg).class_names == tuple(names)


# ---- what cannot work


def test_weights_are_loaded_and_checked(tmp_path: Path) -> None:
    cfg = tiny_config()
    save_random_weights(cfg, tmp_path)
    stored = torch.load(cfg.MODEL.WEIGHTS)["model"]
    loaded = Predictor(cfg).model.state_dict()
    assert all(torch.equal(stored[name], loaded[name]) for name in loaded)

    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match="gone"):
        Predictor(cfg)
    trunk = {k.removeprefix("backbone."): v for k, v in stored.items() if k.startswith("backbone.")}
    torch.save({"model": trunk, "matching_heuristics": True}, tmp_path / "trunk.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "trunk.pth")
    with pytest.raises(WeightsError, match=r"trunk\.pth: holds a backbone only"):
        Predictor(cfg)


@pytest.mark.parametrize("device", ["warp", "cuda:9"])
def test_missing_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"MODEL.DEVICE: .*{device}"):
        Predictor(color_config(), device=device)


def test_bad_pictures(tmp_path: Path) -> None:
    predictor = Predictor(color_config())
    with pytest.raises(ImageError, match="list"):
        predictor(str(tmp_path))
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        predictor([tmp_path / "gone.jpg"])
    for array in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ImageError, match="picture 0: array of type"):
            predictor([array])
    Image.fromarray(plain_color("red")).save(tmp_path / "big.png")
    predictor.cfg.INPUT.MAX_PIXELS = 100
    with pytest.raises(ImageError, match=r"big\.png: 30 x 20 pixels"):
        predictor([tmp_path / "big.png"])


def test_plain_detectron2_configuration_will_do() -> None:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 32
    before = cfg.dump()
    cfg.freeze()
    predictor = Predictor(cfg, model=build_model(color_config()))
    assert predictor([plain_color("blue")[:, :, ::-1]])[0].file_name == "picture 0"
    assert cfg.dump() == before


def test_model_left_in_training_mode() -> None:
    predictor = Predictor(color_config())
    predictor.model.train()
    predictor([plain_color("red")])
    assert not predictor.model.training
