"""Peculiarities that are reproduced: the published behaviour is the default, each has a switch.

docs/detic.md has the table of decisions.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.federated import federated_columns
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.max_size import MaxSizeLoss
from detic_ext.modeling.predictor_options import PredictorOptions
from tests.detic_ext.tiny_model import box_item, label_item, losses_of, tiny_config, tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detic.md"
SWITCHES = (
    "MODEL.ROI_BOX_HEAD.MAX_SIZE_IGNORE_LAST",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_COUNT_BACKGROUND",
    "MODEL.ROI_BOX_HEAD.IMAGE_LOSS_ALL_STAGES",
)
IGNORE_LAST, COUNT_BACKGROUND, ALL_STAGES = SWITCHES
NEED_FIRST = "MODEL.ROI_HEADS.MASKS_NEED_FIRST_IMAGE"
REPAIRED = (NEED_FIRST,)


@pytest.mark.parametrize("key", [*SWITCHES, *REPAIRED])
def test_the_page_names_the_switch(key: str) -> None:
    value = tiny_config()
    for part in key.split("."):
        value = value[part]
    assert value is (key in SWITCHES)
    (table,) = re.findall(
        r"^## Decisions.*?(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert f"`{key}`" in table


def test_max_size_may_look_at_the_last_region() -> None:
    boxes_R4 = torch.tensor([[0, 0, 2, 2], [0, 0, 5, 5], [0, 0, 9, 9.0], [0, 0, 3, 3]])
    batch = ImageLabelBatch(boxes_R4, [3, 1], [[0], [0]], [(9, 9)] * 2, num_classes=1)
    published = build_image_label_loss("max_size").select(batch).rows_M
    repaired = build_image_label_loss("max_size", ignore_last=False).select(batch).rows_M
    assert published.tolist() == [1, 3]
    assert repaired.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("ignore", "image_box", "ignored"),
    [(True, False, True), (False, False, False), (True, True, True), (False, True, True)],
)
def test_an_appended_image_box_is_left_out_in_any_case(
    ignore: bool, image_box: bool, ignored: bool
) -> None:
    model = tiny_model(IGNORE_LAST, ignore, "MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", image_box)
    for predictor in model.roi_heads.predictors:
        assert isinstance(predictor.weak_loss, MaxSizeLoss)
        assert predictor.weak_loss.ignore_last is ignored


@pytest.mark.parametrize("max_present", [None, 3])
def test_background_takes_a_place_of_the_federated_loss_or_none(max_present: int | None) -> None:
    labels_R, weight_C = torch.tensor([1, 4, 9, 9]), torch.ones(9)
    counted = {}
    for published in (True, False):
        sample = federated_columns(
            labels_R, weight_C, 5, max_present=max_present, count_background=published
        )
        counted[published] = set(sample.columns_S[sample.weight_S > 0].tolist())
        assert {1, 4} <= counted[published] <= set(range(9))
    assert len(counted[True]) == 4  # two that occur and two drawn
    assert len(counted[False]) == 5


def test_without_background_the_two_rules_are_the_same() -> None:
    labels_R, weight_C = torch.tensor([1, 4]), torch.ones(9)
    samples = []
    for published in (True, False):
        torch.manual_seed(0)
        samples.append(federated_columns(labels_R, weight_C, 5, count_background=published))
    assert torch.equal(samples[0].columns_S, samples[1].columns_S)
    assert torch.equal(samples[0].weight_S, samples[1].weight_S)


@pytest.mark.parametrize("published", [True, False])
def test_the_loss_draws_as_the_switch_says(published: bool) -> None:
    key = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT", 3)
    options = PredictorOptions.from_config(tiny_config(*key, COUNT_BACKGROUND, published))
    loss = BoxClassificationLoss(
        federated_size=options.federated_size, count_background=options.count_background
    )
    logits_RK = torch.zeros(2, 5)
    found = loss(KnownLogits(logits_RK), torch.tensor([0, 4]), freq_weight_C=torch.ones(4))
    # every column that counts adds ln 2 per region
    counted = 2 if published else 3
    assert float(found) == pytest.approx(counted * torch.log(torch.tensor(2.0)).item())


def test_image_labels_teach_all_stages_or_the_first_alone() -> None:
    batch = [label_item([1]), label_item([2, 3])]
    torch.manual_seed(0)
    published = losses_of(tiny_model().train(), batch)
    torch.manual_seed(0)
    model = tiny_model(ALL_STAGES, False).train()
    first = losses_of(model, batch)
    assert set(first) == set(published)
    assert all(float(published[f"image_loss_stage{k}"].detach()) > 0 for k in range(3))
    assert [float(first[f"image_loss_stage{k}"].detach()) > 0 for k in range(3)] == [1, 0, 0]
    # processes with other batches find the same gradients to reduce
    sum(first.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_empty_first_picture_silences_masks_on_request_alone() -> None:
    empty, shown = box_item(boxes=[], classes=[]), box_item()
    for need_first, batch, trained in (
        (False, [empty, shown], True),
        (True, [empty, shown], False),
        (True, [shown, empty], True),
    ):
        model = tiny_model(NEED_FIRST, need_first).train()
        losses = losses_of(model, batch)
        assert (float(losses["loss_mask"].detach()) > 0) is trained
        losses["loss_mask"].backward()
        assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())
