"""The mixed-supervision model: losses of every kind of batch, and inference by vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from detic_ext.config_checks import check_detic
from ext_common.errors import ConfigError, DatasetError, VocabularyError
from ext_common.text_encoder import HashTextEncoder, embed_vocabulary
from ext_common.vocabulary import Vocabulary
from tests.detic_ext.tiny_model import (
    NAMES,
    box_item,
    label_item,
    losses_of,
    picture,
    tiny_config,
    tiny_model,
)

IMAGE_LOSSES = ("max_size", "image", "first", "max_score", "min_loss", "wsddn")


@pytest.mark.parametrize("heads", ["DeticCascadeROIHeads", "DeticROIHeads"])
@pytest.mark.parametrize("loss", IMAGE_LOSSES)
def test_every_kind_of_batch_has_the_same_losses_and_gradients(loss: str, heads: str) -> None:
    model = tiny_model(
        "MODEL.ROI_HEADS.NAME", heads,
        "MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", loss,
        "MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", True,
        "MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP", loss == "wsddn",
    ).train()  # fmt: skip
    boxes = losses_of(model, [box_item(), box_item(boxes=[], classes=[])])
    labels = losses_of(model, [label_item([1, 3]), label_item([4])])
    assert set(boxes) == set(labels)
    stages = 3 if heads == "DeticCascadeROIHeads" else 1
    assert sum(name.startswith("image_loss") for name in boxes) == stages
    assert all(torch.isfinite(value) for value in (*boxes.values(), *labels.values()))
    assert all(float(boxes[f"image_loss_stage{k}"].detach()) == 0 for k in range(stages))
    assert all(float(labels[f"image_loss_stage{k}"].detach()) > 0 for k in range(stages))
    zero = ("loss_rpn_cls", "loss_rpn_loc", "loss_mask", "loss_cls_stage0", "loss_box_reg_stage0")
    assert all(float(labels[name].detach()) == 0 for name in zero)
    # all processes must reduce the same gradients, whatever their batch
    sum(labels.values()).backward()
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    skipped = wanted - got
    assert not {name for name in skipped if "prop_score" not in name}
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.grad is not None)


def test_image_labels_move_scores_towards_the_label() -> None:
    model = tiny_model("MODEL.ROI_BOX_HEAD.IMAGE_LOSS_WEIGHT", 1.0).train()
    batch = [label_item([2]), label_item([2])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []
    for _ in range(6):
        losses = losses_of(model, batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.8 * history[0]


def test_proposal_batches_teach_the_proposal_generator_alone() -> None:
    model = tiny_model().train()
    item = box_item() | {"ann_type": "prop"}
    losses = losses_of(model, [item])
    assert set(losses) == set(losses_of(model, [box_item()]))
    assert float(losses["loss_rpn_cls"].detach()) > 0
    assert float(losses["loss_cls_stage0"].detach()) == 0


def test_mixed_kinds_in_one_batch_are_refused() -> None:
    model = tiny_model().train()
    with pytest.raises(DatasetError, match="MULTI_DATASET_GROUPING"):
        losses_of(model, [box_item(), label_item([0])])


def test_labels_outside_the_vocabulary_are_refused() -> None:
    model = tiny_model().train()
    with pytest.raises(DatasetError, match="label 99"):
        losses_of(model, [label_item([99])])


def test_mask_loss_counts_the_images_that_have_masks_wherever_they_stand() -> None:
    model = tiny_model().train()
    empty, full = box_item(boxes=[], classes=[]), box_item()
    first = losses_of(model, [empty, full])["loss_mask"]
    assert float(first.detach()) > 0


def test_federated_loss_of_all_classes_equals_the_full_loss() -> None:
    plain = tiny_model().train()
    fed = tiny_model().train()
    for predictor in fed.roi_heads.predictors:
        predictor.freq_weight = torch.ones(len(NAMES))
        predictor.classification_loss.federated_size = len(NAMES) + 1
    fed.load_state_dict(plain.state_dict(), strict=False)
    batch = [box_item()]
    ours, full = losses_of(fed, batch), losses_of(plain, batch)
    for name in full:
        assert_close(ours[name], full[name])


def embedded(*names: str) -> Vocabulary:
    return embed_vocabulary(Vocabulary.from_names(names), HashTextEncoder(16), ("{}",), None)


def test_vocabularies_of_one_model_do_not_touch_each_other() -> None:
    model = tiny_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = [{"image": picture(64), "height": 64, "width": 64}]
    with torch.no_grad():
        own = model(inputs)[0]["instances"]
        same = model(inputs, classifier=model.prepare_vocabulary(embedded(*NAMES)))[0]["instances"]
        other = model(inputs, classifier=model.prepare_vocabulary(embedded("a", "b")))
        again = model(inputs)[0]["instances"]
    torch.testing.assert_close(own.scores, same.scores)
    assert torch.equal(own.pred_classes, same.pred_classes)
    torch.testing.assert_close(own.scores, again.scores)
    assert int(other[0]["instances"].pred_classes.max()) <= 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_vocabulary_of_another_encoder_or_width_is_refused() -> None:
    model = tiny_model().eval()
    with pytest.raises(VocabularyError, match="no embeddings"):
        model.prepare_vocabulary(Vocabulary.from_names(["a"]))
    wide = embed_vocabulary(Vocabulary.from_names(["a"]), HashTextEncoder(32), ("{}",), None)
    with pytest.raises(VocabularyError, match="32"):
        model.prepare_vocabulary(wide)
    foreign = Vocabulary.from_embeddings(["a"], torch.ones(1, 16), "another")
    with pytest.raises(VocabularyError, match="another"):
        model.prepare_vocabulary(foreign)


def test_class_columns_are_shared_but_saved_per_stage() -> None:
    model = tiny_model()
    weights = [predictor.cls_score.zs_weight for predictor in model.roi_heads.predictors]
    assert len({weight.data_ptr() for weight in weights}) == 1
    keys = [name for name in model.state_dict() if name.endswith("cls_score.zs_weight")]
    assert keys == [f"roi_heads.box_predictor.{k}.cls_score.zs_weight" for k in range(3)]


def test_one_class_per_proposal_keeps_one_class() -> None:
    one = tiny_model(
        "MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL", True, "TEST.DETECTIONS_PER_IMAGE", 200
    )
    inputs = [{"image": picture(64), "height": 64, "width": 64}]
    with torch.no_grad():
        found = one.eval()(inputs)[0]["instances"]
    boxes = [tuple(box) for box in found.pred_boxes.tensor.round(decimals=3).tolist()]
    assert len(boxes) == len(set(boxes))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", True], "logits"),
        (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False], "class-agnostic"),
        (["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False], "CLS_AGNOSTIC_MASK True"),
        (["DATASETS.TRAIN", "('a',)"], "no training dataset has image labels"),
    ],
)
def test_impossible_combinations_are_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_detic(tiny_config(*opts), True)


def mixed(*opts: Any) -> Any:
    return tiny_config(
        "DATASETS.TRAIN", "('a','b')",
        "DATALOADER.SAMPLER_TRAIN", "MultiDatasetSampler",
        "DATALOADER.DATASET_ANN", "['box','image']",
        "DATALOADER.MULTI_DATASET_GROUPING", True,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
        *opts,
    )  # fmt: skip


def test_good_mixed_configuration_passes() -> None:
    check_detic(mixed(), True)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["WITH_IMAGE_LABELS", False], "WITH_IMAGE_LABELS True"),
        (["DATALOADER.MULTI_DATASET_GROUPING", False], "MULTI_DATASET_GROUPING"),
        (["DATALOADER.FILTER_EMPTY_ANNOTATIONS", True], "FILTER_EMPTY_ANNOTATIONS"),
        (["MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "biggest"], "max_size"),
        (["MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "image"], "ADD_IMAGE_BOX"),
        (["MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "wsddn"], "WITH_SOFTMAX_PROP"),
        (["DATALOADER.DATASET_RATIO", "[1]"], "DATASET_RATIO has 1 entries for 2"),
        (["DATALOADER.DATASET_ANN", "['box','label']"], "unknown kind of annotation 'label'"),
    ],
)
def test_impossible_mixtures_are_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_detic(mixed(*opts), True)


def test_archives_need_the_loader_that_reads_them() -> None:
    tars = ("DATALOADER.USE_TAR_DATASET", True)
    check_detic(mixed(*tars), True)
    plain = tiny_config(*tars, "WITH_IMAGE_LABELS", False)
    check_detic(plain, False)  # nothing is trained
    with pytest.raises(ConfigError, match="TrainingSampler reads no tar archives.*MultiDataset"):
        check_detic(plain, True)


def test_frequencies_of_the_configured_data_win_over_those_of_a_checkpoint() -> None:
    model, blank = tiny_model(), tiny_model()
    ours, stored = torch.arange(1.0, 6.0), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    for predictor in model.roi_heads.predictors:
        predictor.freq_weight = ours.clone()
    for predictor in blank.roi_heads.predictors:
        predictor.freq_weight = torch.zeros(5)
    state = {
        name: stored if name.endswith("freq_weight") else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    blank.load_state_dict(state)
    assert all(torch.equal(p.freq_weight, ours) for p in model.roi_heads.predictors)
    assert all(torch.equal(p.freq_weight, stored) for p in blank.roi_heads.predictors)
