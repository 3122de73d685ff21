"""Batches that break detectors: nothing annotated, nothing proposed, nothing finite (spec 12)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detic_ext.modeling.stage_targets import clip_boxes
from ext_common.non_finite import NonFiniteLossError
from ext_common.train_step import Precision, TrainStep
from tests.detic_ext.tiny_model import (
    C4_OPTS,
    CAPTION_OPTS,
    CENTERNET_OPTS,
    box_item,
    caption_item,
    label_item,
    losses_of,
    tiny_model,
)

KINDS = {"centernet": CENTERNET_OPTS, "rpn": (), "c4": C4_OPTS}


def empty_item() -> dict[str, Any]:
    """A picture of the box dataset that shows nothing annotated."""
    return box_item(boxes=[], classes=[])


@pytest.fixture(params=sorted(KINDS))
def opts(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    return KINDS[request.param]


def test_pictures_without_objects_can_stand_anywhere(opts: tuple[Any, ...]) -> None:
    model = tiny_model(*opts).train()
    batches = ([box_item(), empty_item()], [empty_item(), box_item()], [empty_item(), empty_item()])
    results = [losses_of(model, batch) for batch in batches]
    for losses in results:
        assert set(losses) == set(results[0])
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
    for name, value in results[2].items():
        if "box_reg" in name or "loc" in name or "mask" in name or "_pos" in name:
            assert float(value.detach()) == 0
        if name.startswith(("loss_cls", "loss_rpn_cls")) or name.endswith("_neg"):
            assert float(value.detach()) > 0


class NoProposals(nn.Module):
    """A proposal generator that finds nothing."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Any = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        found = []
        for size in images.image_sizes:
            proposals = Instances(size)
            proposals.proposal_boxes = Boxes(torch.zeros(0, 4))
            proposals.objectness_logits = torch.zeros(0)
            found.append(proposals)
        return found, {"loss_nothing": images.tensor.sum() * 0} if self.training else {}


@pytest.mark.parametrize("image_box", [False, True])
@pytest.mark.parametrize("loss", ["max_size", "first", "max_score", "min_loss", "wsddn"])
def test_pictures_without_proposals(loss: str, image_box: bool) -> None:
    model = tiny_model(
        "MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", loss,
        "MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP", loss == "wsddn",
        "MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", image_box,
    ).train()  # fmt: skip
    model.proposal_generator = NoProposals()
    losses = losses_of(model, [label_item([1, 3]), label_item([])])
    assert all(torch.isfinite(value) for value in losses.values())
    # with nothing to learn from the loss is 0; the box of the whole picture is something
    assert (float(losses["image_loss_stage0"].detach()) > 0) == image_box
    sum(losses.values()).backward()
    if not image_box:
        # the boxes of objects are proposals as well
        boxes = losses_of(model, [empty_item(), box_item()])
        assert float(boxes["loss_cls_stage0"].detach()) > 0
        nothing = losses_of(model, [empty_item(), empty_item()])
        assert set(nothing) == set(losses)
        assert all(float(value.detach()) == 0 for value in nothing.values())
    found = model.eval()([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
    assert len(found[0]["instances"]) == 0


@pytest.mark.parametrize("kind", ["caption", "captiontag"])
def test_captions_of_pictures_without_proposals(kind: str) -> None:
    model = tiny_model(*CAPTION_OPTS).train()
    model.proposal_generator = NoProposals()
    tags = None if kind == "caption" else [2]
    losses = losses_of(model, [caption_item("a red square", tags), caption_item("a disc", tags)])
    assert float(losses["image_loss_stage0"].detach()) > 0


def test_labels_of_no_class_teach_nothing() -> None:
    losses = losses_of(tiny_model().train(), [label_item([]), label_item([])])
    assert all(float(losses[f"image_loss_stage{k}"].detach()) == 0 for k in range(3))


def break_boxes(model: nn.Module, value: float) -> None:
    """The regression of the proposals and of the first stage becomes infinite or NaN."""
    generator, predictor = model.proposal_generator, model.roi_heads.predictors[0]
    head = generator.centernet_head.bbox_pred if hasattr(generator, "centernet_head") else None
    with torch.no_grad():
        if head is not None:
            head.bias.fill_(value)
        predictor.bbox_pred[-1].bias.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["box", "image"])
@pytest.mark.parametrize("detector", ["centernet", "rpn"])
def test_boxes_that_are_not_finite_end_the_step(detector: str, kind: str, value: float) -> None:
    model = tiny_model(*KINDS[detector]).train()
    break_boxes(model, value)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step = TrainStep(model, optimizer, Precision("cpu"))
    batch = [box_item(), empty_item()] if kind == "box" else [label_item([1]), label_item([2])]
    with EventStorage(0), pytest.raises(NonFiniteLossError):
        step(batch, 0)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, tensor in model.state_dict().items():
        if not name.endswith(statistics):
            torch.testing.assert_close(tensor, before[name], equal_nan=True, rtol=0, atol=0)


def test_detection_survives_boxes_that_are_not_finite() -> None:
    for opts in (CENTERNET_OPTS, ()):
        model = tiny_model(*opts).eval()
        break_boxes(model, float("nan"))
        with torch.no_grad():
            found = model([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
        assert torch.isfinite(found[0]["instances"].pred_boxes.tensor).all()


def test_clipping() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[-3.0, 2, 50, 9], [1, 1, 2, 2], [nan, 0, 5, 5], [0, 0, inf, 5]])
    clipped = clip_boxes(boxes, (8, 30))
    assert clipped.tolist() == [[0, 2, 30, 8], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_c4_heads_share_their_last_stage_with_masks() -> None:
    model = tiny_model(*C4_OPTS, "MODEL.MASK_ON", True)
    losses = losses_of(model.train(), [box_item(), empty_item()])
    assert float(losses["loss_mask"].detach()) > 0
    labels = losses_of(model, [label_item([1]), label_item([2])])
    assert set(labels) == set(losses)
    with torch.no_grad():
        found = model.eval()([{"image": torch.zeros(3, 64, 64), "height": 32, "width": 48}])
    instances = found[0]["instances"]
    assert instances.pred_masks.shape == (len(instances), 32, 48)
    assert len(instances)


def test_features_of_regions_are_kept_on_request() -> None:
    model = tiny_model("MODEL.ROI_BOX_HEAD.ADD_FEATURE_TO_PROP", True).train()
    images = model.preprocess_image([label_item([1])])
    features = model.backbone(images.tensor)
    targets = [box_item()["instances"]]
    with EventStorage(0):
        proposals, _ = model.proposal_generator(images, features, targets)
        sampled, _ = model.roi_heads(images, features, proposals, targets)
    assert sampled[0].feat.shape == (len(sampled[0]), 24)
