"""The pretraining model: kinds of regions, losses that are left out, what is frozen, bad settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ext_common.config import finish_config, get_config, load_config, validate_config
from ext_common.errors import ConfigError, DatasetError
from regionclip_ext.modeling.pretrain.batch import PretrainBatch
from regionclip_ext.modeling.pretrain.config_checks import check_pretraining, check_rpn_pixels
from regionclip_ext.modeling.pretrain.region_sources import sample_regions
from regionclip_ext.modeling.regions.source import as_regions
from tests.regionclip_ext.golden_models import CONFIGS
from tests.regionclip_ext.pretrain_cases import offline_yaml, random_config
from tests.regionclip_ext.pretrain_runs import batch_of_two, build_pretraining, step_losses

REGION_LOSSES = {"loss_region_distill", "loss_concept_contrastive"}


@pytest.mark.parametrize("kind", ["RANDOM", "GRID", "FILE"])
def test_regions_of_every_kind_train_the_student_alone(tmp_path: Path, kind: str) -> None:
    model = build_pretraining(random_config(tmp_path, [("CLIP.CROP_REGION_TYPE", kind)]))
    losses = step_losses(model, batch_of_two(proposals=kind == "FILE"))
    assert set(losses) == {*REGION_LOSSES, "loss_img_txt_level"}
    # the contrast is 0 where all regions are of one concept
    assert all(torch.isfinite(loss) and loss >= 0 for loss in losses.values())
    assert losses["loss_region_distill"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        trained = name.startswith("backbone.") and not name.startswith(
            ("backbone.conv", "backbone.layer1")
        )
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


def test_losses_that_are_not_wanted_are_not_computed(tmp_path: Path) -> None:
    cfg = random_config(tmp_path, [("CLIP.PRETRAIN_IMG_TXT_LEVEL", False)])
    model = build_pretraining(cfg)
    assert model.lang_encoder is None
    assert set(step_losses(model, batch_of_two())) == REGION_LOSSES
    options = [("CLIP.CONCEPT_POOL_EMB", None), ("CLIP.TEACHER_CONCEPT_POOL_EMB", None)]
    model = build_pretraining(random_config(tmp_path, options))
    assert model.teacher_backbone is None
    assert set(step_losses(model, batch_of_two())) == {"loss_img_txt_level"}
    with pytest.raises(ConfigError, match="nothing to train on"):
        build_pretraining(
            random_config(tmp_path, [*options, ("CLIP.PRETRAIN_IMG_TXT_LEVEL", False)])
        )


def test_frozen_networks_stay_in_evaluation_mode(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path))
    for mode in (True, False, True):
        model.train(mode)
        assert model.backbone.training == mode
        assert not model.teacher_backbone.training
        assert not model.lang_encoder.training


def test_frozen_networks_in_bfloat16_label_nearly_alike(tmp_path: Path) -> None:
    options = [("CLIP.CROP_REGION_TYPE", "FILE"), ("CLIP.PRETRAIN_SAMPLE_REGIONS", None)]
    exact = step_losses(
        build_pretraining(random_config(tmp_path, options)), batch_of_two(proposals=True)
    )
    half = build_pretraining(
        random_config(tmp_path, [*options, ("CLIP.PRETRAIN_FROZEN_BF16", True)])
    )
    for name, loss in step_losses(half, batch_of_two(proposals=True)).items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.1), name


def test_floats_from_0_to_1_are_the_same_as_bytes(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path, [("CLIP.CROP_REGION_TYPE", "FILE")]))
    whole = step_losses(model, batch_of_two(proposals=True))
    floats = [{**item, "image": item["image"] / 255} for item in batch_of_two(proposals=True)]
    for name, loss in step_losses(model, floats).items():
        assert loss.item() == pytest.approx(whole[name].item(), rel=1e-4)


def test_columns_of_padding_are_not_encoded_and_change_nothing(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path))
    batch = PretrainBatch.of(batch_of_two(), torch.device("cpu"))
    short = batch.tokens()
    assert short.shape == (2, 5)
    with torch.no_grad():
        whole = model.lang_encoder(torch.stack([i["tokens"] for i in batch_of_two()]))
        assert torch.allclose(model.lang_encoder(short), whole, atol=1e-5)


def test_samples_without_regions_or_captions_are_named(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path, [("CLIP.CROP_REGION_TYPE", "FILE")]))
    with pytest.raises(DatasetError, match="image key0 comes without proposals"):
        step_losses(model, batch_of_two())
    batch = batch_of_two(proposals=True)
    del batch[1]["tokens"]
    with pytest.raises(DatasetError, match="not one row of tokens each"):
        step_losses(model, batch)


def test_sampling_takes_a_random_part_without_repeats() -> None:
    boxes = torch.arange(40).float().view(10, 4)
    torch.manual_seed(0)
    draws = [sample_regions([as_regions(boxes, (9, 9))], 4)[0].tensor[:, 0] for _ in range(60)]
    assert all(len(set(drawn.tolist())) == 4 for drawn in draws)
    assert set(torch.cat(draws).tolist()) == set(boxes[:, 0].tolist())
    assert len(sample_regions([as_regions(boxes, (9, 9))], 100)[0]) == 10
    assert torch.equal(sample_regions([as_regions(boxes, (9, 9))], None)[0].tensor, boxes)


def test_a_valid_configuration_passes(tmp_path: Path) -> None:
    validate_config(random_config(tmp_path), training=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([("CLIP.TEACHER_CONCEPT_POOL_EMB", None)], "TEACHER_CONCEPT_POOL_EMB.* 24 wide.* is 16"),
        ([("CLIP.CONCEPT_POOL_EMB", "teacher.pth")], "CONCEPT_POOL_EMB: .*24 wide.*'s are 16"),
        ([("CLIP.TEACHER_CONCEPT_POOL_EMB", "short.pth")], "11 concepts, .* has 12"),
        ([("CLIP.CONCEPT_POOL_EMB", None)], "the teacher has concepts and the student has none"),
        ([("CLIP.CONCEPT_THRES", None)], "CONCEPT_THRES"),
        ([("CLIP.TEACHER_TEMP", 0.0)], "TEACHER_TEMP"),
        ([("CLIP.PRETRAIN_ONLY_EOT", False)], "PRETRAIN_ONLY_EOT"),
        (
            [("CLIP.CROP_REGION_TYPE", "FILE"), ("CLIP.PROPOSAL_FILE", "nowhere")],
            "nowhere: no precomputed proposals",
        ),
        ([("ROI_BOX_HEAD.POOLER_RESOLUTION", 14)], "ROI_BOX_HEAD.POOLER_R.* 50 tokens.*5 .4 for"),
        ([("CLIP.TEACHER_POOLER_RESOLUTION", 14)], "CLIP.TEACHER_POOLER_R.* 50 tokens.*10 .6 for"),
        ([("ROI_HEADS.NAME", "Res5ROIHeads")], "ROI_HEADS.NAME: Res5.*to PretrainRes5ROIHeads"),
        ([("CLIP.CROP_REGION_TYPE", "GT")], "CROP_REGION_TYPE: 'GT' .*RPN, RANDOM, GRID, FILE"),
        ([("CLIP.CROP_REGION_TYPE", "RPN")], "OFFLINE_RPN_CONFIG"),
        ([("CLIP.ENCODER_WEIGHTS", "no.pt")], "CLIP.ENCODER_WEIGHTS: no such file: no.pt"),
        ([("CLIP.TEACHER_ENCODER_WEIGHTS", "no.pt")], "TEACHER_ENCODER_WEIGHTS: no such file"),
        (
            [("CLIP.CROP_REGION_TYPE", "RPN"), ("CLIP.BB_RPN_WEIGHTS", "no.pt")],
            "BB_RPN_WEIGHTS: no such file: no.pt",
        ),
    ],
    ids=[
        "teacher pool",
        "width",
        "count",
        "student pool",
        "threshold",
        "temperature",
        "eot",
        "proposals",
        "pooler",
        "teacher pooler",
        "head",
        "regions",
        "detector",
        "encoder file",
        "teacher file",
        "rpn file",
    ],
)
def test_bad_settings_are_named_before_training(
    tmp_path: Path, options: list[tuple[str, Any]], message: str
) -> None:
    torch.save(torch.randn(11, 24), tmp_path / "short.pth")
    placed = [(k, str(tmp_path / v) if str(v).endswith(".pth") else v) for k, v in options]
    with pytest.raises(Exception, match=message) as caught:
        validate_config(random_config(tmp_path, placed), training=True)
    assert isinstance(caught.value, (ConfigError, DatasetError))


def test_loader_and_picture_format_are_checked(tmp_path: Path) -> None:
    cfg = random_config(tmp_path)
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    with pytest.raises(ConfigError, match="TrainingSampler gives no captions"):
        validate_config(cfg, training=True)
    cfg = random_config(tmp_path)
    cfg.DATASETS.PATH_TRAIN = ()
    with pytest.raises(ConfigError, match="1 names, 1 kinds and 0 paths"):
        validate_config(cfg, training=True)
    cfg = random_config(tmp_path)
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ConfigError, match="INPUT.FORMAT: BGR pictures"):
        validate_config(cfg, training=True)
    with pytest.raises(ConfigError, match="detects nothing"):
        validate_config(random_config(tmp_path), training=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AUG.USE_TIMM", True),
        ("AUG.TIMM_AUG.USE_LOADER", True),
        ("AUG.TIMM_AUG.USE_TRANSFORM", True),
        ("INPUT.TEXT_TOKENIZER", "bert"),
    ],
)
def test_published_keys_that_would_have_no_effect_are_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    cfg = random_config(tmp_path)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"^{key}: .*{value}"):
        validate_config(cfg, training=True)


def test_random_encoders_and_a_random_rpn_must_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "rpn.yaml").write_text(offline_yaml())
    weights = tmp_path / "clip.pt"
    weights.touch()
    rpn = [
        ("CLIP.CROP_REGION_TYPE", "RPN"),
        ("CLIP.OFFLINE_RPN_CONFIG", str(tmp_path / "rpn.yaml")),
    ]
    validate_config(random_config(tmp_path, rpn), training=True)
    none = [*rpn, ("CLIP.PRETRAIN_RPN_REGIONS", 0)]
    with pytest.raises(ConfigError, match="CLIP.PRETRAIN_RPN_REGIONS: 0 proposals are kept"):
        validate_config(random_config(tmp_path, none), training=True)
    strict = [("CLIP.ALLOW_RANDOM_INIT", False)]
    with pytest.raises(ConfigError, match="CLIP.ENCODER_WEIGHTS, MODEL.WEIGHTS: .*RN50.pt"):
        validate_config(random_config(tmp_path, strict), training=True)
    encoder = ("CLIP.ENCODER_WEIGHTS", str(weights))
    for named in (encoder, ("WEIGHTS", str(weights))):
        validate_config(random_config(tmp_path, [*strict, named]), training=True)
    with pytest.raises(ConfigError, match="CLIP.BB_RPN_WEIGHTS, MODEL.WEIGHTS: .*rpn_lvis_866"):
        validate_config(random_config(tmp_path, [*strict, *rpn, encoder]), training=True)
    for named in (("CLIP.BB_RPN_WEIGHTS", str(weights)), ("WEIGHTS", str(weights))):
        validate_config(random_config(tmp_path, [*strict, *rpn, encoder, named]), training=True)


def test_pretraining_on_pairs_takes_their_loader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Published files leave SAMPLER_TRAIN out."""
    cfg = random_config(tmp_path)
    cfg.DATALOADER.SAMPLER_TRAIN = get_config().DATALOADER.SAMPLER_TRAIN
    finish_config(cfg, training=True)
    assert cfg.DATALOADER.SAMPLER_TRAIN == "ImageTextPairs"
    validate_config(cfg, training=True)
    # a detector's base file brings its test sets along
    cfg.DATASETS.TEST = ("coco_2017_val",)
    finish_config(cfg, training=True)
    assert cfg.DATASETS.TEST == ()
    assert "DATASETS.TEST (coco_2017_val) is not used" in caplog.text
    for change in (
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ["DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "DATASETS.FACTORY_TRAIN", ()],
        ["DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "MODEL.META_ARCHITECTURE", "CLIPFastRCNN"],
    ):
        cfg.merge_from_list(change)
        finish_config(cfg, training=True)
        assert change[1] == cfg.DATALOADER.SAMPLER_TRAIN


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("pretrain*")), ids=lambda path: path.stem)
def test_published_configurations_have_sizes_that_belong_together(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])  # the offline branch's file is named from there
    pool = tmp_path / "pool.pth"
    torch.save(torch.randn(3, 640 if "x4" in path.stem else 1024), pool)
    options = ["MODEL.CLIP.CONCEPT_POOL_EMB", str(pool), "MODEL.CLIP.ALLOW_RANDOM_INIT", "True"]
    check_pretraining(load_config(path, options), True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"INPUT.FORMAT": "RGB"}, "INPUT.FORMAT is RGB, .* in the order BGR"),
        ({"MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53]}, "INPUT.FORMAT is BGR, .* order RGB"),
        (
            {"MODEL.PIXEL_MEAN": [0.406, 0.456, 0.485], "MODEL.PIXEL_STD": [57.4, 57.1, 58.4]},
            "from 0 to 1",
        ),
        ({"MODEL.PIXEL_MEAN": [110.0]}, "not three channels"),
    ],
    ids=["format", "order", "range", "channels"],
)
def test_offline_rpn_with_a_contradicting_pixel_format(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    branch = get_config()
    check_rpn_pixels(branch, "rpn.yaml")
    for key, value in change.items():
        parent, last = key.split(".")
        branch[parent][last] = value
    with pytest.raises(ConfigError, match=f"rpn.yaml: .*{message}"):
        check_rpn_pixels(branch, "rpn.yaml")


def test_pixel_format_of_the_offline_file_is_checked_with_the_settings(tmp_path: Path) -> None:
    offline = tmp_path / "rpn.yaml"
    offline.write_text(offline_yaml().replace("FORMAT: BGR", "FORMAT: RGB"))
    options = [("CLIP.CROP_REGION_TYPE", "RPN"), ("CLIP.OFFLINE_RPN_CONFIG", str(offline))]
    with pytest.raises(ConfigError, match="in the order BGR"):
        validate_config(random_config(tmp_path, options), training=True)
