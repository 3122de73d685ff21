"""Score fusion and the whole post-processing of one image against the authors' code."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances

from regionclip_ext.modeling.detections import DetectionOptions, detect
from regionclip_ext.modeling.predictor import ClipPredictorOptions
from regionclip_ext.modeling.score_fusion import fuse_objectness
from regionclip_ext.modeling.soft_nms import SoftNMSOptions
from tests.regionclip_ext.golden_models import golden_parts
from tests.regionclip_ext.test_classifier_golden import predictor


@pytest.mark.golden
def test_golden_post_processing() -> None:
    for get in golden_parts("score_fusion_nms.npz").values():
        threshold = float(get["nms_thresh"])
        soft = SoftNMSOptions(linear_threshold=threshold) if get["soft_nms"] else None
        model = predictor(
            get["text_emb"],
            options=ClipPredictorOptions(
                keep_boxes=bool(get["no_box_delta"]),
                multiply_objectness=bool(get["multiply_rpn_score"]),
                report_class_score=bool(get["vis"]),
                detections=DetectionOptions(
                    score_threshold=float(get["score_thresh"]),
                    nms_threshold=threshold,
                    max_detections=int(get["topk"]),
                    soft=soft,
                ),
            ),
        ).eval()
        model.bbox_pred.load_state_dict(
            {"weight": get["bbox_pred.weight"], "bias": get["bbox_pred.bias"]}
        )
        height, width = get["image_hw"].tolist()
        image = Instances((height, width))
        image.proposal_boxes = Boxes(get["proposal_boxes"])
        image.objectness_logits = get["objectness_logits"]
        with torch.no_grad():
            predictions = model(get["x"])
            (found,), (rows,) = model.inference(predictions, [image])
        probs = predictions[0].softmax(1)
        torch.testing.assert_close(probs, get["probs"], atol=1e-4, rtol=0)
        if get["multiply_rpn_score"]:
            fused = fuse_objectness(probs, image.objectness_logits)
            golden = get["fused_scores"]
            torch.testing.assert_close(fused, golden, atol=1e-4, rtol=0, equal_nan=True)
        # golden rows are counted among those with finite scores
        finite = get["fused_scores"].isfinite().all(dim=1).nonzero()[:, 0]
        assert torch.equal(rows, finite[get["out_proposal_index"]])
        assert torch.equal(found.pred_classes, get["out_classes"])
        torch.testing.assert_close(found.scores, get["out_scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.pred_boxes.tensor, get["out_boxes"], atol=1e-3, rtol=0)


def test_raw_logits_drop_regions_and_sigmoid_does_not() -> None:
    """Pitfall 11.4: both forms are there."""
    probs, logits = torch.full((3, 2), 0.5), torch.tensor([-1.0, 0.5, 8.0])
    raw = fuse_objectness(probs, logits)
    assert raw.isnan().any(dim=1).tolist() == [True, False, False]
    assert raw[2, 0] > 1
    smooth = fuse_objectness(probs, logits, sigmoid=True)
    torch.testing.assert_close(smooth[:, 0], (0.5 * logits.sigmoid()).sqrt())
    assert (smooth <= 1).all()


@pytest.mark.parametrize("soft", [None, SoftNMSOptions()], ids=["nms", "soft-nms"])
def test_one_class_per_region_and_inputs_that_stay_as_they_are(soft: SoftNMSOptions | None) -> None:
    boxes = torch.tensor([[-5.0, 0, 20, 20], [30, 30, 60, 60], [0, 0, float("nan"), 9]])
    scores = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.5, 0.2], [0.9, 0.1, 0.0]])
    before = boxes.clone()
    options = DetectionOptions(score_threshold=0.1, soft=soft, one_class=True)
    found, rows = detect(boxes, scores, (50, 50), options)
    assert found.pred_classes.tolist() == [0, 1]
    assert rows.tolist() == [0, 1]
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 20, 20], [30, 30, 50, 50]]
    torch.testing.assert_close(boxes, before, equal_nan=True)


def test_soft_nms_with_a_box_per_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10, 20, 20, 30, 30]])
    options = DetectionOptions(score_threshold=0.1, soft=SoftNMSOptions())
    found, _ = detect(boxes, torch.tensor([[0.4, 0.5, 0.1]]), (50, 50), options)
    assert found.pred_classes.tolist() == [1, 0]
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 30, 30], [0, 0, 10, 10]]
