"""Caption batches: losses, the captions of other processes, the text tower's weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.testing import assert_close

from detic_ext.config_checks import check_detic
from detic_ext.modeling.caption_batch import draw_captions
from detic_ext.modeling.caption_encoder import ClipCaptionEncoder, build_caption_encoder
from detic_ext.modeling.supervision import CaptionFeatures, Supervision
from ext_common.checkpoint import load_model_weights
from ext_common.errors import ConfigError, DatasetError, WeightsError
from ext_common.launch import launch
from ext_common.text_encoder import HashTextEncoder
from tests.detic_ext.caption_workers import CAPTIONS, caption_batch, run_steps, sync_model
from tests.detic_ext.tiny_model import (
    C4_OPTS,
    CAPTION_OPTS,
    box_item,
    caption_item,
    label_item,
    losses_of,
    tiny_config,
    tiny_model,
)
from tests.dist.worker_mains import arguments
from tests.ext_common.clip_files import expected_features, model_folder, save_weights, tiny_clip


def batches() -> dict[str, list[dict[str, Any]]]:
    return {
        "box": [box_item(), box_item(boxes=[], classes=[])],
        "image": [label_item([1]), label_item([2, 4])],
        "caption": [caption_item("a red square"), caption_item("two discs")],
        "captiontag": [caption_item("a red square", [0]), caption_item("two discs", [])],
        "prop": [box_item() | {"ann_type": "prop"}],
    }


@pytest.mark.parametrize("opts", [(), C4_OPTS], ids=["cascade", "c4"])
def test_every_kind_of_batch_has_the_same_losses_and_gradients(opts: tuple[Any, ...]) -> None:
    model = tiny_model(*opts, *CAPTION_OPTS).train()
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {}
    for kind, batch in batches().items():
        losses = losses_of(model, batch)
        names[kind] = set(losses)
        assert all(torch.isfinite(value) for value in losses.values())
        image = sum(float(v.detach()) for n, v in losses.items() if n.startswith("image_loss"))
        assert (image > 0) == (kind not in ("box", "prop"))
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None}
        assert got == wanted
    assert len(set(map(frozenset, names.values()))) == 1


def caption_loss_by_hand(
    model: nn.Module, batch: list[dict[str, Any]], features: Tensor, first: int, weight: float
) -> float:
    """The sum of the stages' image losses of a caption batch, from the regions the heads see."""
    seen: list[tuple[Tensor, list[int]]] = []
    for predictor in model.roi_heads.predictors:
        original = predictor.image_label_loss

        def spy(regions: Tensor, proposals: Any, supervision: Any, call: Any = original) -> Tensor:
            seen.append((regions.detach(), [len(found) for found in proposals]))
            result: Tensor = call(regions, proposals, supervision)
            return result

        predictor.image_label_loss = spy
    losses_of(model, batch)
    total = 0.0
    for predictor, (regions, counts) in zip(model.roi_heads.predictors, seen, strict=True):
        row = -1
        for image, count in enumerate(counts):
            row += count
            projected = nn.functional.normalize(predictor.cls_score.linear(regions[row]), dim=0)
            for column, caption in enumerate(features):
                unit = nn.functional.normalize(caption, dim=0)
                logit = predictor.cls_score.temperature * projected @ unit
                own = column == first + image
                term = nn.functional.softplus(-logit if own else logit)
                total += float(term.detach()) * (1.0 if own else weight) / len(counts) * 0.1
    return total


def test_the_image_box_is_compared_with_every_caption_of_the_batch() -> None:
    model = tiny_model(*CAPTION_OPTS).train()
    texts = ["a red square", "two blue discs", "a star"]
    batch = [caption_item(text) for text in texts]
    losses = losses_of(model, batch)
    got = sum(float(v.detach()) for name, v in losses.items() if name.startswith("image_loss"))
    wanted = caption_loss_by_hand(model, batch, HashTextEncoder(16).encode(texts), 0, 1.0)
    assert got == pytest.approx(wanted, rel=1e-4)


def test_tags_and_captions_add_up() -> None:
    model = tiny_model(*CAPTION_OPTS, "MODEL.ROI_BOX_HEAD.CAPTION_WEIGHT", 0.5).train()
    both = [caption_item("a red square", [1]), caption_item("two discs", [2, 3])]
    tags = [item | {"ann_type": "image"} for item in both]
    captions = [item | {"ann_type": "caption"} for item in both]
    sums = {name: losses_of(model, batch) for name, batch in
            (("both", both), ("tags", tags), ("captions", captions))}  # fmt: skip
    for name in sums["both"]:
        assert_close(sums["both"][name], sums["tags"][name] + sums["captions"][name])
    whole = tiny_model(*CAPTION_OPTS).train()
    for name, value in losses_of(whole, captions).items():
        assert_close(value * 0.5, sums["captions"][name])


def test_two_processes_compare_each_others_captions(tmp_path: Path) -> None:
    launch(run_steps, arguments(2, folder=str(tmp_path)), device="cpu")
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    encoder = HashTextEncoder(16)
    first = torch.cat([encoder.encode(CAPTIONS[rank]) for rank in range(2)])
    second = torch.cat([encoder.encode(CAPTIONS[0]), torch.zeros(2, 16)])
    model = sync_model()
    reference = {}
    for step, rank, features in (
        ("captions", 0, first),
        ("captions", 1, first),
        ("mixed", 0, second),
    ):
        captions = CaptionFeatures(features, first_own_row=2 * rank)
        reference[step, rank] = with_captions(model, caption_batch(rank), captions)
        assert seen[rank][step] == pytest.approx(reference[step, rank], rel=1e-4)
    # the process with boxes had nothing to compare, but as many losses
    assert set(seen[1]["mixed"]) == set(seen[0]["mixed"])
    assert seen[1]["mixed"]["image_loss_stage0"] == 0
    # the zeros of a box process are negatives, so they change the loss
    name = "image_loss_stage0"
    assert reference["captions", 0][name] != pytest.approx(reference["mixed", 0][name], rel=1e-3)


def with_captions(
    model: nn.Module, batch: list[dict[str, Any]], captions: CaptionFeatures
) -> dict[str, float]:
    """Losses of a batch whose captions and those of others are given."""
    supervision = Supervision(ann_type="caption", labels=((),) * len(batch), captions=captions)
    model._supervision = lambda batched_inputs: supervision
    losses = losses_of(model, batch)
    return {name: float(value.detach()) for name, value in losses.items()}


def test_every_caption_of_an_image_is_drawn_equally_often() -> None:
    item = {"captions": ["a", "b", "c", "d"]}
    counts = Counter(draw_captions([item])[0] for _ in range(800))
    assert set(counts) == set("abcd")
    assert min(counts.values()) > 150


@pytest.mark.parametrize("captions", [None, [], "one text", [1, 2]])
def test_images_without_captions_are_named(captions: Any) -> None:
    with pytest.raises(DatasetError, match=r"photos/7\.jpg"):
        draw_captions([{"captions": captions, "file_name": "photos/7.jpg"}])


def test_caption_batches_need_a_model_that_reads_captions() -> None:
    model = tiny_model().train()
    with pytest.raises(ConfigError, match=r"MODEL\.WITH_CAPTION True"):
        losses_of(model, [caption_item("a red square")])


def clip_options(folder: Path, weights: Path | str) -> list[Any]:
    """The tiny CLIP model as the text encoder; classes are given as a file of its width."""
    rows = torch.randn(3, 24)
    torch.save({"names": ["a", "b", "c"], "embeddings": rows}, folder / "classes.pth")
    return [
        *CAPTION_OPTS,
        "MODEL.VOCABULARY", folder / "classes.pth",
        "MODEL.TEXT_ENCODER.NAME", model_folder(folder / "clip"),
        "MODEL.TEXT_ENCODER.WEIGHTS", weights,
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM", 24,
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["torchscript", "text only"])
def test_the_tower_takes_clips_weights(form: str, tmp_path: Path) -> None:
    clip = tiny_clip()
    opts = clip_options(tmp_path, save_weights(form, clip, tmp_path))
    encoder = build_caption_encoder(tiny_config(*opts))
    texts = ["a red square", "two blue discs beside a star"]
    assert_close(encoder.encode(texts), expected_features(clip, texts), rtol=1e-4, atol=1e-5)


def test_checkpoints_with_and_without_the_tower_load(tmp_path: Path) -> None:
    clip = tiny_clip()
    opts = clip_options(tmp_path, save_weights("text only", clip, tmp_path))
    with_tower = build_model(tiny_config(*opts))
    without = build_model(tiny_config(*opts, "MODEL.WITH_CAPTION", False))
    torch.save({"model": with_tower.state_dict()}, tmp_path / "captions.pth")
    torch.save({"model": without.state_dict()}, tmp_path / "boxes.pth")
    # training on captions begins with a model of boxes, and keeps CLIP's tower
    report = load_model_weights(with_tower, tmp_path / "boxes.pth")
    assert report.complete
    assert all(name.startswith("text_encoder.") for name in report.permitted)
    assert_close(with_tower.text_encoder.encode(["a"]), expected_features(clip, ["a"]))
    # and a model of captions detects without the tower
    report = load_model_weights(without, tmp_path / "captions.pth")
    assert report.complete
    # a machine without CLIP's file takes the tower from the checkpoint
    opts[opts.index("MODEL.TEXT_ENCODER.WEIGHTS") + 1] = ""
    bare = build_model(tiny_config(*opts))
    with pytest.raises(WeightsError, match="no weights"):
        bare.text_encoder.encode(["a"])
    assert load_model_weights(bare, tmp_path / "captions.pth").complete
    assert_close(bare.text_encoder.encode(["a"]), expected_features(clip, ["a"]))


def test_captions_and_classes_need_features_of_one_width(tmp_path: Path) -> None:
    opts = clip_options(tmp_path, save_weights("text only", tiny_clip(), tmp_path))
    with pytest.raises(ConfigError, match="width 24"):
        build_caption_encoder(tiny_config(*opts, "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM", 16))


def test_the_full_size_tower_is_what_the_default_name_means() -> None:
    name = "ViT-B-32-quickgelu"
    with torch.device("meta"):
        opts = ("MODEL.TEXT_ENCODER.NAME", name, "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM", 512)
        encoder = build_caption_encoder(tiny_config(*opts, "MODEL.VOCABULARY", ""))
    assert isinstance(encoder, ClipCaptionEncoder)
    assert encoder.shape == type(encoder.shape)()


def caption_config(*opts: Any) -> Any:
    return tiny_config(
        *CAPTION_OPTS,
        "DATASETS.TRAIN", "('a','b')",
        "DATALOADER.SAMPLER_TRAIN", "MultiDatasetSampler",
        "DATALOADER.DATASET_ANN", "['box','captiontag']",
        "DATALOADER.MULTI_DATASET_GROUPING", True,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
        "DATALOADER.USE_DIFF_BS_SIZE", True,
        "DATALOADER.DATASET_BS", "[2, 8]",
        "MODEL.SYNC_CAPTION_BATCH", True,
        *opts,
    )  # fmt: skip


def test_good_caption_configuration_passes() -> None:
    check_detic(caption_config(), True)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WITH_CAPTION", False], "WITH_CAPTION True"),
        (["MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", False], "ADD_IMAGE_BOX True"),
        (["MODEL.DYNAMIC_CLASSIFIER", True], "exclude each other"),
        (["MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS", False], "USE_ZEROSHOT_CLS True"),
        (["DATALOADER.DATASET_ANN", "['box','image']"], "no training dataset has captions"),
        (["DATALOADER.DATASET_BS", "[2, 4]"], "4 times as large"),
        (["MODEL.CAP_BATCH_RATIO", 2], "2 times as large"),
        (["DATALOADER.USE_DIFF_BS_SIZE", False], "4 times as large"),
        (["MODEL.DATASET_LOSS_WEIGHT", "[1.0]"], "DATASET_LOSS_WEIGHT has 1 entries for 2"),
    ],
)
def test_impossible_caption_configurations_are_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_detic(caption_config(*opts), True)


def test_training_on_captions_without_any_text_weights_is_refused_at_start() -> None:
    cfg = caption_config("MODEL.TEXT_ENCODER.NAME", "ViT-B-32-quickgelu")
    with pytest.raises(WeightsError, match="MODEL.TEXT_ENCODER"):
        check_detic(cfg, True)
