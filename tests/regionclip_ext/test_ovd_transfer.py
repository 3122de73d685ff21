"""Transfer and zero-shot detection on four small pictures; bad settings (recipes: test_recipes.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ext_common.config import load_config, validate_config
from ext_common.errors import ConfigError
from ext_common.modeling.build import build_model
from ext_common.predictor import Predictor
from ext_common.vocabulary import Vocabulary
from regionclip_ext.config_checks import check_regionclip
from tests.dist.tiny_training import CLASSES, write_dataset
from tests.regionclip_ext.golden_models import CONFIGS
from tests.regionclip_ext.tiny_detector import tiny_config, tiny_options
from tests.regionclip_ext.tool_logging import logging_restored
from tools import demo, train_net


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The tools set logging up for a whole process, which is this one here."""
    with logging_restored():
        yield


def _start(config: str, *options: str) -> int:
    return train_net.main(["--config-file", str(CONFIGS / config), *options])


def _run_options(folder: Path, name: str, **keys: object) -> list[str]:
    registry = write_dataset(folder / "data", f"{name}_train", f"{name}_val")
    return tiny_options(
        folder,
        DATASETS__REGISTRY=(str(registry),),
        DATASETS__TRAIN=(f"{name}_train",),
        DATASETS__TEST=(f"{name}_val",),
        DATALOADER__NUM_WORKERS=0,
        INPUT__MIN_SIZE_TRAIN=(64,),
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__STEPS=(),
        SOLVER__MAX_ITER=2,
        MODEL__VOCABULARY=f"dataset:{name}_train",
        OUTPUT_DIR=str(folder / "output"),
        **keys,
    )


def test_fine_tuning_on_own_boxes_then_zero_shot_on_its_boxes(tmp_path: Path) -> None:
    options = _run_options(tmp_path, "regionclip_fine_tune")
    assert _start("ovd_coco_RN50.yaml", *options) == 0
    checkpoint = tmp_path / "output" / "model_final.pth"
    assert checkpoint.is_file()
    # ground-truth regions at test: the boxes come from the test set
    weights = ["MODEL.WEIGHTS", str(checkpoint), "OUTPUT_DIR", str(tmp_path / "zero_shot")]
    weights += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.CLIP.CLSS_TEMP", "0.1"]
    assert _start("zeroshot_coco_RN50_gt.yaml", "--eval-only", *options, *weights) == 0
    (found,) = (tmp_path / "zero_shot").rglob("coco_instances_results.json")
    detections = json.loads(found.read_text())
    truth = json.loads((tmp_path / "data" / "instances.json").read_text())
    boxes = {(a["image_id"], *a["bbox"]) for a in truth["annotations"]}
    assert detections
    for detection in detections:
        place = (detection["image_id"], *(round(v) for v in detection["bbox"]))
        assert place in boxes


def test_own_classes_in_own_pictures_with_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config(tmp_path))
    with torch.no_grad():  # logits above 0: raw fusion drops the others
        model.offline_proposal_generator.rpn_head.objectness_logits.bias.fill_(5.0)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    write_dataset(tmp_path / "data")
    pictures = [str(path) for path in sorted((tmp_path / "data" / "images").iterdir())[:2]]
    code = demo.main([
        "--config-file", str(CONFIGS / "zeroshot_RN50.yaml"), "--input", *pictures,
        "--output", str(tmp_path / "found"), "--vocabulary", "cat, remote control, lamp",
        "--confidence-threshold", "0.01", "--format", "coco",
        "--opts", *tiny_options(tmp_path, MODEL__WEIGHTS=str(tmp_path / "model.pth")),
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    (written,) = (tmp_path / "found").glob("*.json")
    text = written.read_text()
    assert "remote control" in text


def test_a_predictor_takes_several_vocabularies_and_leaves_its_model_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = tiny_config(
        tmp_path, MODEL__VOCABULARY="disc, square", MODEL__CLIP__NO_BOX_DELTA=True,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0,
    )  # fmt: skip
    model = build_model(cfg).eval()
    assert model.vocabulary.names == CLASSES
    predictor = Predictor(cfg, model=model)
    picture = torch.randint(256, (64, 96, 3), dtype=torch.uint8).numpy()
    (own,) = predictor([picture])
    other = predictor.with_vocabulary(Vocabulary.parse("cat, dog, lamp"))
    (others,) = other([picture])
    (again,) = predictor([picture])
    assert set(own.names) <= set(CLASSES)
    assert set(others.names) <= {"cat", "dog", "lamp"}
    assert own.names == again.names
    assert (own.scores_R == again.scores_R).all()


def test_masks_and_open_set_classes_in_training_and_test(tmp_path: Path) -> None:
    tested = tmp_path / "test.pth"
    torch.save(torch.randn(5, 16), tested)
    cfg = tiny_config(
        tmp_path, "ovd_lvis_RN50.yaml", MODEL__VOCABULARY="disc, square",
        MODEL__CLIP__OPENSET_TEST_TEXT_EMB_PATH=str(tested), DATASETS__TRAIN=(), DATASETS__TEST=(),
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, MODEL__CLIP__RPN_SCORE_SIGMOID=True,
    )  # fmt: skip
    model = build_model(cfg).eval()
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        found = model([{"image": image, "height": 32, "width": 48}])[0]["instances"]
    assert len(model.vocabulary) == 5
    assert found.pred_classes.max() > 1
    assert found.pred_masks.shape[1:] == (32, 48)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": 14}, "POOLER_RESOLUTION"),
        ({"MODEL__CLIP__TEXT_EMB_DIM": 640}, "TEXT_EMB_DIM"),
        ({"MODEL__CLIP__CROP_REGION_TYPE": "GRID"}, "CROP_REGION_TYPE"),
        ({"MODEL__CLIP__OFFLINE_RPN_CONFIG": None}, "OFFLINE_RPN_CONFIG"),
        ({"MODEL__CLIP__OFFLINE_RPN_OPTS": ["INPUT.FORMAT", "RGB"]}, "INPUT.FORMAT"),
        ({"MODEL__CLIP__OFFLINE_RPN_POST_NMS_TOPK_TEST": 0}, "TOPK_TEST: 0 proposals are kept"),
        ({"MODEL__CLIP__BB_RPN_WEIGHTS": "nowhere.pth"}, "BB_RPN_WEIGHTS"),
        ({"MODEL__CLIP__IMAGE_ENCODER": "ViT-B-32"}, "feature map of a ResNet"),
        ({"MODEL__CLIP__CLSS_TEMP": 0.0}, "CLSS_TEMP"),
        (
            {"MODEL__CLIP__CROP_REGION_TYPE": "GT", "MODEL__CLIP__MULTIPLY_RPN_SCORE": True},
            "MULTIPLY_RPN_SCORE",
        ),
        (
            {"MODEL__ROI_HEADS__SOFT_NMS_ENABLED": True, "MODEL__ROI_HEADS__SOFT_NMS_METHOD": "x"},
            "SOFT_NMS_METHOD",
        ),
        (
            {"MODEL__VOCABULARY": "a, b", "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": False},
            "CLS_AGNOSTIC_BBOX_REG",
        ),
        ({}, "no class embeddings to train with"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_settings_are_refused(
    keys: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(tiny_config(tmp_path, **keys), training=True)


def test_a_file_of_the_rpn_is_not_asked_for_where_regions_are_ground_truth(tmp_path: Path) -> None:
    """Published commands switch a file with an RPN to GT."""
    keys: dict[str, object] = {"MODEL__CLIP__BB_RPN_WEIGHTS": "nowhere.pth"}
    validate_config(
        tiny_config(tmp_path, MODEL__CLIP__CROP_REGION_TYPE="GT", **keys), training=False
    )
    with pytest.raises(ConfigError, match="BB_RPN_WEIGHTS: no such file: nowhere.pth"):
        validate_config(tiny_config(tmp_path, **keys), training=False)


@pytest.mark.parametrize("stem", ["C4", "FPN"])
def test_plain_baselines_give_clip_the_pixels_it_was_trained_on(stem: str, tmp_path: Path) -> None:
    size = {"FPN": 7, "C4": 4}[stem]
    keys: dict[str, object] = {"MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": size}
    cfg = tiny_config(tmp_path, f"rcnn_coco_RN50_{stem}.yaml", **keys)
    check_regionclip(cfg, True)
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    plain = build_model(cfg).preprocess_image([{"image": white}]).tensor
    mean, std = (torch.tensor(load_config(CONFIGS / "Base_C4.yaml").MODEL[k])
                 for k in ("PIXEL_MEAN", "PIXEL_STD"))  # fmt: skip
    torch.testing.assert_close(plain[0, :, 0, 0], (1 - mean) / std)
    cfg.MODEL.PIXEL_MEAN = mean.tolist()
    with pytest.raises(ConfigError, match="for values from 0 to 1; .*122.7709383.* to .*68.5005"):
        check_regionclip(cfg, True)


def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "emb.pth"
    for shape, message in (((3, 8), "8 wide"), ((4, 16), "has 4 classes")):
        torch.save(torch.randn(shape), path)
        with pytest.raises(ConfigError, match=message):
            build_model(
                tiny_config(
                    tmp_path,
                    MODEL__CLIP__TEXT_EMB_PATH=str(path),
                    MODEL__ROI_HEADS__NUM_CLASSES=3,
                )
            )


@pytest.mark.parametrize(
    "path",
    sorted(set(CONFIGS.glob("[a-z]*.yaml")) - set(CONFIGS.glob("pretrain*"))),
    ids=lambda path: path.stem,
)
def test_published_configurations_have_sizes_that_belong_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])  # the offline branch's file is named from there
    cfg = load_config(path, ["MODEL.CLIP.BB_RPN_WEIGHTS", "None"])
    check_regionclip(cfg, bool(cfg.MODEL.CLIP.TEXT_EMB_PATH))
    assert cfg.OUTPUT_DIR.startswith("output/regionclip") or path.stem.startswith("rpn_")
    assert "quickgelu" in cfg.MODEL.TEXT_ENCODER.NAME
