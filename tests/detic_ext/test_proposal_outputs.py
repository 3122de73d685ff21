"""EVAL_PROPOSAL_AR: detectors give their proposals, and their recall is scored (issue: evaluation)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ext_common.evaluation.proposal_recall import ProposalRecallEvaluator
from tests.detic_ext.tiny_model import C4_OPTS, CENTERNET_OPTS, picture, tiny_model
from tests.ext_common.annotation_files import box, content, write
from tests.ext_common.evaluation_cases import registered

KEY = "EVAL_PROPOSAL_AR"
KINDS = {"centernet": CENTERNET_OPTS, "rpn": (), "c4": C4_OPTS}


def detect(model: torch.nn.Module, image: Tensor) -> Mapping[str, Any]:
    # half as wide, and as high, as the model sees it
    with torch.no_grad():
        return model.eval()([{"image": image, "height": 64, "width": 32, "image_id": 1}])[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_proposals_come_in_the_size_of_the_picture_and_change_nothing_else(kind: str) -> None:
    image = picture(64)
    plain, found = (detect(tiny_model(*KINDS[kind], KEY, on), image) for on in (False, True))
    assert set(plain) == {"instances"}
    ours, theirs = found["instances"], plain["instances"]
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    proposals = found["proposals"]
    assert proposals.image_size == (64, 32)
    boxes_R4 = proposals.proposal_boxes.tensor
    assert 0 < len(boxes_R4) <= 100
    assert float(boxes_R4[:, 0::2].max()) <= 32 < float(boxes_R4[:, 3].max()) <= 64


def test_their_recall_is_scored(tmp_path: Path) -> None:
    # an object where the model proposes one, and one where nothing is
    model = tiny_model(*CENTERNET_OPTS, KEY, True)
    output = detect(model, picture(64))
    x1, y1, x2, y2 = output["proposals"].proposal_boxes.tensor[0].tolist()
    objects = [box(1, 1, 10, [x1, y1, x2 - x1, y2 - y1]), box(2, 1, 10, [30.5, 63, 1, 1])]
    annotations = content([(64, 32)], objects)
    write(tmp_path / "two.json", annotations)
    nothing = Instances((64, 32))
    nothing.pred_boxes, nothing.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    with registered(tmp_path, annotations) as name:
        evaluator = ProposalRecallEvaluator(name)
        evaluator.process([{"image_id": 1}], [{**output, "instances": nothing}])
        assert evaluator.evaluate()["box_proposals"]["AR50@1000"] == 50.0
