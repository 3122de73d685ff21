"""Whole pretraining steps against the authors' code: features, labels, losses, gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor

from regionclip_ext.concepts.matching import match_concepts
from regionclip_ext.data.resize import ShortSideResize, resized_size
from regionclip_ext.modeling.pixels import normalize_images
from regionclip_ext.modeling.pretrain.meta_arch import PretrainFastRCNN
from regionclip_ext.modeling.pretrain.region_head import whole_images
from regionclip_ext.modeling.regions.source import as_regions
from tests.golden_cases import golden_arrays, golden_root
from tests.regionclip_ext.pretrain_cases import golden_config, golden_weights

CASES = sorted(p.name for p in (golden_root() / "regionclip").glob("pretrain_*_teacher.npz"))

pytestmark = pytest.mark.golden


class _Case:
    """A model of a golden file and its batch."""

    def __init__(self, name: str, folder: Path) -> None:
        self.arrays = golden_arrays("regionclip", name)
        cfg = golden_config(self.arrays, folder)
        self.model: Any = build_model(cfg)
        # non-strict only for what a golden file does not name: everything it has must fit
        found = self.model.load_state_dict(golden_weights(self.arrays), strict=False)
        assert not found.unexpected_keys
        assert not [key for key in found.missing_keys if "num_batches" not in key]
        self.meta = json.loads(str(self.arrays["meta_json"]))
        count = len(self.arrays["tokens"])
        self.images = [torch.from_numpy(self.arrays[f"image{i}_u8"]) for i in range(count)]
        self.boxes = [torch.from_numpy(self.arrays[f"proposals{i}"]) for i in range(count)]
        self.sizes = [(image.shape[1], image.shape[2]) for image in self.images]
        self.batch = [
            {"image": image, "tokens": torch.from_numpy(tokens), "image_id": i}
            for i, (image, tokens) in enumerate(
                zip(self.images, self.arrays["tokens"], strict=True)
            )
        ]

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Region and image features of the student, region features of the teacher."""
        model: PretrainFastRCNN = self.model
        images = normalize_images(
            self.images, self.sizes, model.pixels, channels="RGB", largest=255.0
        ).tensor
        assert list(images.shape[-2:]) == self.arrays["padded_hw"].tolist()
        boxes = [Boxes(boxes) for boxes in self.boxes]
        whole = whole_images((images.shape[-2], images.shape[-1]), len(boxes), images.device)
        with torch.no_grad():
            res4 = model.backbone(images)["res4"]
            assert model.teacher_backbone is not None
            teacher = model.teacher_backbone(images)["res4"]
            return (
                model.roi_heads(model.backbone, res4, boxes),
                model.roi_heads(model.backbone, res4, whole),
                model.roi_heads(model.teacher_backbone, teacher, boxes, teacher=True),
            )


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Case:
    return _Case(request.param, tmp_path_factory.mktemp("golden"))


def test_golden_pretrain_cases_are_there() -> None:
    assert CASES


def test_golden_pretrain_proposals(case: _Case) -> None:
    proposals = case.model.regions.propose(case.images, case.sizes)
    for found, expected in zip(proposals, case.boxes, strict=True):
        boxes = found.proposal_boxes.tensor
        # the authors' were shuffled: every box of theirs has one of ours
        assert boxes.shape == expected.shape
        distances = torch.cdist(expected, boxes)
        assert distances.min(dim=1).values.max() < 1e-2
        assert len(set(distances.argmin(dim=1).tolist())) == len(expected)


def test_golden_pretrain_features_and_labels(case: _Case) -> None:
    arrays, model = case.arrays, case.model
    regions, whole, teacher = case.features()
    np.testing.assert_allclose(regions, arrays["region_feats"], atol=1e-5)
    np.testing.assert_allclose(whole, arrays["global_feats"], atol=1e-5)
    texts = model.lang_encoder(torch.from_numpy(arrays["tokens"]))
    np.testing.assert_allclose(texts, arrays["text_embs"], atol=1e-5)
    match = match_concepts(
        teacher,
        model.teacher_concepts_CT,
        case.meta["concept_thres"],
        temperature=case.meta["teacher_temp"],
    )
    np.testing.assert_array_equal(match.kept_R, arrays["keep_regions"].astype(bool))
    np.testing.assert_array_equal(match.labels_R[match.kept_R], arrays["target_inds"])
    np.testing.assert_allclose(match.probs_RC[match.kept_R], arrays["soft_targets"], atol=2e-3)


@pytest.mark.parametrize("regions", ["live", "stored"])
@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_golden_pretrain_losses_and_gradients(case: _Case, joint: bool, regions: str) -> None:
    model, arrays = case.model, case.arrays
    model.options = model.options.__class__(
        **{**model.options.__dict__, "joint_pass": joint, "sampled_regions": 100}
    )
    source = model.regions
    batch = case.batch
    if regions == "stored":
        model.regions = None
        batch = [
            {**item, "proposals": as_regions(boxes, size)}
            for item, boxes, size in zip(batch, case.boxes, case.sizes, strict=True)
        ]
    model.train()
    model.zero_grad()
    with EventStorage(0):
        losses = model(batch)
    sum(losses.values()).backward()
    model.regions = source
    expected = {key: value for key, value in arrays.items() if key.startswith("loss_")}
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name].detach(), value, rtol=2e-3, err_msg=name)
    parameters = dict(model.named_parameters())
    names = [key for key in arrays if key.startswith("g/")]
    # the key bias has a gradient of zero: what the authors have there is rounding
    noise = 1e-6 * max(np.abs(arrays[name]).max() for name in names)
    for name in names:
        gradient = parameters[name[2:]].grad
        assert gradient is not None
        atol = 1e-2 * np.abs(arrays[name]).max()
        np.testing.assert_allclose(
            gradient, arrays[name], rtol=0, atol=max(atol, noise), err_msg=name
        )
    trained = {name for name, value in parameters.items() if value.grad is not None}
    frozen = [name for name in trained if not name.startswith("backbone.")]
    assert not frozen
    assert not [n for n in trained if n.startswith(("backbone.conv", "backbone.layer1"))]


def test_golden_pretrain_resize() -> None:
    arrays = golden_arrays("regionclip", "pretrain_resize.npz")
    for width, height, new_width, new_height in arrays["in_wh_out_wh"].tolist():
        found = resized_size(width, height, short=800, longest=1333)
        assert found == (new_width, new_height)
    key = next(name for name in arrays if name.startswith("img_out_"))
    short, longest = (int(part.lstrip("shortmax")) for part in key.split("_")[2:])
    pixels = ShortSideResize(short, longest)(arrays["img_in"])
    assert pixels.shape == arrays[key].shape
    assert np.abs(pixels.astype(int) - arrays[key].astype(int)).max() <= 1
