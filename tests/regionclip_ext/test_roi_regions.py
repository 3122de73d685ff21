"""Where regions come from, how pictures are normalised, and how regions are sampled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage

from ext_common.errors import DatasetError
from ext_common.modeling.build import build_model
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images
from regionclip_ext.modeling.regions.drawn import GridRegions, RandomRegions
from regionclip_ext.modeling.regions.ground_truth import GroundTruthRegions
from tests.regionclip_ext.tiny_detector import tiny_config

NAME = "regionclip_gt_regions"


def test_random_boxes_lie_on_the_grid_of_the_padded_batch_and_are_shared() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(2, 3, 64, 96)
    first, second = RandomRegions(500, generator=generator).propose(images, [(64, 40), (50, 96)])
    boxes = first.proposal_boxes.tensor
    assert torch.equal(boxes, second.proposal_boxes.tensor)
    assert len(boxes) == 500
    assert torch.equal(boxes % 8, torch.zeros_like(boxes))
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 8).all()
    assert boxes.min() == 0
    assert boxes.amax(dim=0).tolist() == [88, 56, 96, 64]
    assert first.image_size == (64, 40)


def test_tiny_pictures_still_have_a_random_region() -> None:
    (regions,) = RandomRegions(3).propose(torch.zeros(1, 3, 5, 5), [(5, 5)])
    assert regions.proposal_boxes.tensor.tolist() == [[0, 0, 8, 8]] * 3


def test_a_grid_covers_the_picture_without_leaving_it() -> None:
    (regions,) = GridRegions((1, 2)).propose([torch.zeros(3, 40, 100)], [(40, 100)])
    boxes = regions.proposal_boxes.tensor
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == 100
    assert boxes[:, 3].max() == 40
    assert {round(float(b[2] - b[0])) for b in boxes} == {40, 20}
    assert len(boxes.unique(dim=0)) == len(boxes)


def test_normalising_flips_scales_and_pads_with_zero() -> None:
    """Pitfall 11.6 and specification 2.4."""
    clip = PixelFormat("RGB", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    caffe = PixelFormat("BGR", (100.0, 110.0, 120.0), (1.0, 1.0, 1.0))
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    batch = normalize_images([image, image[:, :2]], [(4, 5), (2, 5)], clip, channels="RGB")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.mean, clip.std))
    torch.testing.assert_close(batch.tensor[0], (image / 255 - mean) / std)
    assert torch.equal(batch.tensor[1, :, 2:], torch.zeros(3, 2, 5))
    flipped = normalize_images([image], [(4, 5)], caffe, channels="RGB", divisibility=32)
    torch.testing.assert_close(
        flipped.tensor[0, :, :4, :5], image.flip(0) - torch.tensor(caffe.mean).view(3, 1, 1)
    )
    assert flipped.tensor.shape == (1, 3, 32, 32)
    again = normalize_images([image / 255], [(4, 5)], caffe, channels="RGB", largest=1.0)
    torch.testing.assert_close(again.tensor[0], flipped.tensor[0, :, :4, :5])


def test_ground_truth_is_looked_up_in_the_test_set_and_scaled() -> None:
    box = {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS}
    records = [{"image_id": 7, "annotations": [box, {**box, "iscrowd": 1}]}]
    DatasetCatalog.register(NAME, lambda: records)
    try:
        regions = GroundTruthRegions([NAME])
        item = {"image": torch.zeros(3, 50, 200), "image_id": 7, "height": 100, "width": 100}
        (found,) = regions.propose([item], "cpu")
        assert found.proposal_boxes.tensor.tolist() == [[20, 10, 80, 30]]
        with pytest.raises(DatasetError, match="image 8"):
            regions.propose([{**item, "image_id": 8}], "cpu")
    finally:
        DatasetCatalog.remove(NAME)


def test_test_sets_that_count_alike_are_told_apart_by_their_files() -> None:
    def records(file: str, width: int) -> list[dict[str, Any]]:
        box = {"bbox": [0, 0, width, 5], "bbox_mode": BoxMode.XYWH_ABS}
        return [{"image_id": 1, "file_name": file, "annotations": [box]}]

    sets = {"cats": ("cats/1.jpg", 5), "dogs": ("dogs/1.jpg", 7), "again": ("dogs/1.jpg", 9)}
    for name, (file, width) in sets.items():
        DatasetCatalog.register(f"gt_{name}", partial(records, file, width))
    item = {"image": torch.zeros(3, 10, 10), "image_id": 1, "height": 10, "width": 10}
    try:
        regions = GroundTruthRegions(["gt_cats", "gt_dogs"])
        for file, width in (("cats/1.jpg", 5), ("dogs/1.jpg", 7)):
            (found,) = regions.propose([{**item, "file_name": file}], "cpu")
            assert found.proposal_boxes.tensor.tolist() == [[0, 0, width, 5]]
        both = GroundTruthRegions(["gt_dogs", "gt_again"])
        with pytest.raises(DatasetError, match="gt_dogs and gt_again have other boxes for image 1"):
            both.propose([{**item, "file_name": "dogs/1.jpg"}], "cpu")
    finally:
        for name in sets:
            DatasetCatalog.remove(f"gt_{name}")


def test_the_frozen_branch_stays_in_evaluation_mode_without_gradients(tmp_path: Path) -> None:
    """Pitfall 11.20."""
    model = build_model(tiny_config(tmp_path, MODEL__CLIP__GET_CONCEPT_EMB=True,
                                    MODEL__CLIP__LANG_ENCODER__VOCABULARY=20))  # fmt: skip
    model.train()
    frozen = [model.offline_backbone, model.offline_proposal_generator, model.lang_encoder]
    assert not any(module.training for part in frozen for module in part.modules())
    assert model.backbone.training
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"backbone", "roi_heads"}
    assert {n for n in trained if n.startswith("roi_heads")} == {
        "roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"
    }  # fmt: skip


def _targets(boxes: list[list[float]]) -> Instances:
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    truth.gt_classes = torch.arange(len(boxes))
    return truth


def test_only_foreground_regions_are_sampled_or_one_of_the_background(tmp_path: Path) -> None:
    model = build_model(tiny_config(tmp_path, MODEL__CLIP__ONLY_SAMPLE_FG_PROPOSALS=True))
    heads = model.roi_heads
    regions = []
    for _ in range(2):
        image = Instances((64, 64))
        image.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]]))
        image.objectness_logits = torch.zeros(2)
        regions.append(image)
    with EventStorage():
        some, none = heads.label_and_sample_proposals(
            regions, [_targets([[0.0, 0, 20, 20]]), _targets([])]
        )
    assert some.gt_classes.tolist() == [0, 0]  # the proposal, and the box itself
    assert none.gt_classes.tolist() == [heads.num_classes]


def test_the_pyramid_head_pools_without_the_last_stage(tmp_path: Path) -> None:
    cfg = tiny_config(
        tmp_path,
        MODEL__BACKBONE__NAME="build_clip_resnet_fpn_backbone",
        MODEL__RESNETS__OUT_FEATURES="['res2','res3','res4','res5']",
        MODEL__FPN__IN_FEATURES="['res2','res3','res4','res5']",
        MODEL__FPN__OUT_CHANNELS=128,
        MODEL__ROI_HEADS__NAME="CLIPStandardROIHeads",
        MODEL__ROI_HEADS__IN_FEATURES="['p2','p3','p4','p5']",
        MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION=2,
        MODEL__VOCABULARY="cat, dog",
        MODEL__MASK_ON=True,
        MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead",
        MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=True,
    )
    model = build_model(cfg).eval()
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        found = model([{"image": image, "height": 64, "width": 96}])[0]["instances"]
    assert found.has("pred_masks")
    assert found.pred_masks.shape[1:] == (64, 96)
    truth = _targets([[4.0, 4, 40, 40]])
    from detectron2.structures import PolygonMasks

    truth.gt_masks = PolygonMasks([[torch.tensor([4.0, 4, 40, 4, 40, 40]).numpy()]])
    with EventStorage():
        losses = model.train()([{"image": image, "instances": truth}])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    assert model.backbone.bottom_up.attnpool.v_proj.weight.grad.any()
