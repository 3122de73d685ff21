"""A class subset per step (DYNAMIC_CLASSIFIER): losses, and which classes are drawn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detic_ext.config_checks import check_detic
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.modeling.class_sampling import ClassSampler
from detic_ext.modeling.supervision import Supervision
from ext_common.errors import ConfigError, DatasetError
from tests.detic_ext.tiny_model import (
    C4_OPTS,
    NAMES,
    box_item,
    label_item,
    losses_of,
    tiny_config,
    tiny_model,
)

CLASSES = len(NAMES)


@pytest.fixture
def frequencies(tmp_path: Path) -> Path:
    """Image counts of all classes but the last two, which no picture with boxes shows."""
    path = tmp_path / "counts.json"
    counts = [4, 0, 9, 0, 0]
    path.write_text(json.dumps([{"id": i, "image_count": n} for i, n in enumerate(counts)]))
    return path


def dynamic_model(frequencies: Path, *opts: Any) -> nn.Module:
    return tiny_model(
        "MODEL.DYNAMIC_CLASSIFIER", True,
        "MODEL.NUM_SAMPLE_CATS", 3,
        "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", frequencies,
        *opts,
    ).train()  # fmt: skip


def box_batch() -> list[dict[str, Any]]:
    boxes = ((8, 8, 40, 40), (20, 10, 60, 50))
    return [box_item(boxes=boxes, classes=(0, 3)), box_item(boxes=[], classes=[])]


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "max_size"),
        ("MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "max_score"),
        ("MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", "wsddn",
         "MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP", True),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False),
        ("MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS", True),
        ("MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS", False, "MODEL.VOCABULARY", "",
         "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES),
        C4_OPTS,
    ],
    ids=lambda opts: str(opts[1]) if len(opts) < 10 else "c4",
)  # fmt: skip
def test_a_subset_of_all_classes_in_any_order_changes_nothing(
    opts: tuple[Any, ...], frequencies: Path
) -> None:
    dynamic = dynamic_model(frequencies, *opts)
    order = [3, 0, 4, 2, 1]
    dynamic.class_sampler = lambda supervision, batch: ClassSubset.of(order, CLASSES)
    plain = tiny_model("MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH", frequencies, *opts).train()
    plain.load_state_dict(dynamic.state_dict())
    for batch in (box_batch(), [label_item([1, 4]), label_item([2])]):
        ours, full = losses_of(dynamic, batch), losses_of(plain, batch)
        assert set(ours) == set(full)
        for name in full:
            assert_close(ours[name], full[name], rtol=1e-4, atol=1e-6)


def test_classes_outside_the_subset_get_no_gradient(frequencies: Path) -> None:
    opts = ("MODEL.VOCABULARY", "", "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
            "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS", False)  # fmt: skip
    model = dynamic_model(frequencies, *opts)
    for batch, used in ((box_batch(), [0, 2, 3]), ([label_item([1, 4, 0])], [0, 1, 4])):
        model.zero_grad(set_to_none=True)
        sum(losses_of(model, batch).values()).backward()
        for predictor in model.roi_heads.predictors:
            rows = predictor.cls_score.weight.grad.abs().sum(dim=1)[:CLASSES]
            assert rows.nonzero().flatten().tolist() == used


def test_every_kind_of_batch_has_the_same_losses(frequencies: Path) -> None:
    model = dynamic_model(frequencies)
    names = [
        set(losses_of(model, batch))
        for batch in (box_batch(), [label_item([1])], [box_item() | {"ann_type": "prop"}])
    ]
    assert names[0] == names[1] == names[2]


def draw(sampler: ClassSampler, kind: str, *items: dict[str, Any]) -> list[int]:
    labels = tuple(tuple(item["pos_category_ids"]) for item in items)
    subset = sampler(Supervision(ann_type=kind, labels=labels), items)
    assert subset is not None
    return subset.class_ids_S.tolist()


def test_box_batches_draw_by_frequency_and_image_batches_from_all() -> None:
    sampler = ClassSampler(2, 4, torch.tensor([1.0, 3.0, 0.0, 0.0]))
    boxes = box_item(classes=(3,))
    drawn = Counter(draw(sampler, "box", boxes)[1] for _ in range(800))
    assert set(drawn) == {0, 1}
    assert 0.65 < drawn[1] / 800 < 0.85
    for kind in ("image", "captiontag"):
        drawn = Counter(draw(sampler, kind, label_item([3]))[1] for _ in range(900))
        assert set(drawn) == {0, 1, 2}
        assert min(drawn.values()) > 230
    # everything that is annotated stays, and nothing is drawn twice
    assert draw(sampler, "image", label_item([2, 0]), label_item([2, 3])) == [0, 2, 3]


@pytest.mark.parametrize("kind", ["prop", "proptag", "caption"])
def test_batches_that_teach_no_classes_draw_none(kind: str) -> None:
    sampler = ClassSampler(2, 4, torch.ones(4))
    assert sampler(Supervision(ann_type=kind), [box_item()]) is None


def test_unknown_classes_and_missing_frequencies_are_refused() -> None:
    sampler = ClassSampler(2, 4)
    with pytest.raises(DatasetError, match="label 9 "):
        draw(sampler, "image", label_item([1, 9]))
    with pytest.raises(ConfigError, match="CAT_FREQ_PATH"):
        draw(sampler, "box", box_item())


def test_a_federated_loss_at_the_same_time_is_refused() -> None:
    cfg = tiny_config("MODEL.DYNAMIC_CLASSIFIER", True, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True)
    with pytest.raises(ConfigError, match="USE_FED_LOSS"):
        check_detic(cfg, True)
