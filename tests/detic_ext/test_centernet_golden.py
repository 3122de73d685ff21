"""CenterNet against numbers of the authors' code (tests/golden/detic)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from detic_ext.losses.centernet import location_loss
from detic_ext.modeling.centernet.decode import decode
from detic_ext.modeling.centernet.generator import CenterNet
from detic_ext.modeling.centernet.grid import level_grid
from detic_ext.modeling.centernet.head import CenterNetHead, HeadOptions
from detic_ext.modeling.centernet.more_positives import more_positive_cells
from detic_ext.modeling.centernet.options import DecodeOptions, LossOptions, TargetOptions
from detic_ext.modeling.centernet.targets import make_targets
from tests.golden_cases import golden_arrays

pytestmark = pytest.mark.golden

STRIDES = TargetOptions().strides
# the README of the golden folder states these settings
LOSSES = LossOptions(pos_weight=0.5, neg_weight=0.5, reg_weight=1.0, ignore_high_fp=0.85)


def _tensor(value: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))


def _count(case: dict[str, np.ndarray], prefix: str) -> int:
    return sum(1 for key in case if key.startswith(prefix) and key[len(prefix) :].isdigit())


@pytest.fixture
def targets_case() -> dict[str, np.ndarray]:
    return golden_arrays("detic", "centernet_targets_losses.npz")


def _truth(case: dict[str, np.ndarray]) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
    num = _count(case, "gt_boxes_")
    boxes = [_tensor(case[f"gt_boxes_{i}"]) for i in range(num)]
    classes = [_tensor(case[f"gt_classes_{i}"]) for i in range(num)]
    return boxes, classes, [tuple(shape) for shape in case["level_shapes"].tolist()]


def _instances(case: dict[str, np.ndarray]) -> list[Instances]:
    boxes, classes, _ = _truth(case)
    found = []
    for boxes_B4, classes_B in zip(boxes, classes, strict=True):
        instances = Instances(tuple(case["image_size"].tolist()))
        instances.gt_boxes = Boxes(boxes_B4)
        instances.gt_classes = classes_B
        found.append(instances)
    return found


def test_golden_targets(targets_case: dict[str, np.ndarray]) -> None:
    boxes, classes, shapes = _truth(targets_case)
    for level, (shape, stride) in enumerate(zip(shapes, STRIDES, strict=True)):
        np.testing.assert_array_equal(level_grid(shape, stride), targets_case[f"grid_{level}"])
    agnostic = make_targets(boxes, classes, shapes, TargetOptions())
    found = sorted(zip(agnostic.positives_P.tolist(), agnostic.labels_P.tolist(), strict=True))
    wanted = sorted(
        zip(targets_case["agn_pos_inds"].tolist(), targets_case["agn_labels"].tolist(), strict=True)
    )
    assert found == wanted
    np.testing.assert_allclose(
        agnostic.distances_M4, targets_case["agn_reg_targets"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(agnostic.heatmap_MK, targets_case["agn_heatmap"], atol=1e-5)
    channels = targets_case["cls_heatmap"].shape[1]
    specific = make_targets(boxes, classes, shapes, TargetOptions(), channels)
    np.testing.assert_allclose(specific.heatmap_MK, targets_case["cls_heatmap"], atol=1e-5)
    np.testing.assert_allclose(
        specific.distances_M4, targets_case["cls_reg_targets"], rtol=1e-4, atol=1e-5
    )


def test_golden_more_positives(targets_case: dict[str, np.ndarray]) -> None:
    boxes, classes, shapes = _truth(targets_case)
    cells, labels = more_positive_cells(
        boxes,
        classes,
        shapes,
        _tensor(targets_case["regpred_for_morepos"]),
        lambda p, w: location_loss(p, w, "giou"),
        TargetOptions(more_positives=True),
    )
    wanted = zip(
        targets_case["morepos_inds"].tolist(), targets_case["morepos_labels"].tolist(), strict=True
    )
    assert sorted(zip(cells.tolist(), labels.tolist(), strict=True)) == sorted(wanted)


def _maps(flat: Tensor, shapes: list[tuple[int, int]], num_images: int) -> list[Tensor]:
    """Values [M, C] in the order level, image, row, column as maps [N, C, H, W]."""
    levels = flat.split([num_images * h * w for h, w in shapes])
    return [
        level.reshape(num_images, h, w, -1).permute(0, 3, 1, 2)
        for level, (h, w) in zip(levels, shapes, strict=True)
    ]


VARIANTS = {
    "agn": (LOSSES, True, False),
    "cls": (LOSSES, False, True),
    "both": (LOSSES, True, True),
    "nohfp": (replace(LOSSES, ignore_high_fp=-1.0), True, False),
    "normreg": (replace(LOSSES, weigh_location=True), True, False),
    "iou": (replace(LOSSES, location="iou"), True, False),
    "linear_iou": (replace(LOSSES, location="linear_iou"), True, False),
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_golden_losses(targets_case: dict[str, np.ndarray], variant: str) -> None:
    options, agnostic, classes = VARIANTS[variant]
    _, _, shapes = _truth(targets_case)
    num_images = _count(targets_case, "gt_boxes_")
    num_classes = targets_case["cls_logit_flat"].shape[1] if classes else 0
    head = CenterNetHead(32, len(shapes), HeadOptions(num_classes=num_classes, agnostic=agnostic))
    generator = CenterNet(in_features=[], head=head, losses=options)
    reg = _tensor(targets_case["reg_pred_flat"]).requires_grad_()
    agn = _tensor(targets_case["agn_logit_flat"]).requires_grad_()
    cls = _tensor(targets_case["cls_logit_flat"]).requires_grad_()
    losses = generator._losses(
        _maps(reg, shapes, num_images),
        _maps(agn[:, None], shapes, num_images) if agnostic else None,
        _maps(cls, shapes, num_images) if classes else None,
        _instances(targets_case),
    )
    expected = {
        key[len(variant) + 1 :]: value
        for key, value in targets_case.items()
        if key.startswith(f"{variant}_loss_")
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name].detach(), value, rtol=1e-4, atol=1e-5)
    sum(losses.values()).backward()
    for name, tensor in (("reg", reg), ("agn", agn), ("cls", cls)):
        key = f"grad_{variant}_{name}"
        if key in targets_case:
            np.testing.assert_allclose(tensor.grad, targets_case[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", ["test", "train", "clsdet", "clsagn", "centernms"])
def test_golden_proposals(variant: str) -> None:
    case = golden_arrays("detic", "centernet_proposals.npz")
    levels = _count(case, "reg_")
    reg = [_tensor(case[f"reg_{level}"]) for level in range(levels)]
    agn = [_tensor(case[f"agn_logit_{level}"]).sigmoid() for level in range(levels)]
    cls = [_tensor(case[f"cls_logit_{level}"]).sigmoid() for level in range(levels)]
    with_classes = variant in ("clsdet", "clsagn")
    options = DecodeOptions(
        score_threshold=0.05 if with_classes else 1e-4,
        pre_topk=(300, 60),
        post_topk=(120, 40),
        nms_threshold=(0.9, 0.9),
        center_nms=variant == "centernms",
        sqrt_score=variant != "clsdet",
    )
    found = decode(
        reg,
        cls if with_classes else agn,
        agn if variant == "clsagn" else None,
        STRIDES,
        [tuple(size) for size in case["image_sizes"].tolist()],
        options,
        training=variant == "train",
    )
    for image, instances in enumerate(found):
        boxes, scores = case[f"{variant}_boxes_{image}"], case[f"{variant}_scores_{image}"]
        classes = case[f"{variant}_classes_{image}"]
        order = np.lexsort((*boxes.T, -scores)) if variant == "centernms" else slice(None)
        mine_boxes, mine_scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
        mine = np.lexsort((*mine_boxes.T, -mine_scores)) if variant == "centernms" else slice(None)
        np.testing.assert_allclose(mine_scores[mine], scores[order], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine_boxes[mine], boxes[order], atol=1e-3)
        np.testing.assert_array_equal(instances.pred_classes.numpy()[mine], classes[order])


def test_golden_head() -> None:
    case = golden_arrays("detic", "centernet_head.npz")
    state = {key[3:]: _tensor(value) for key, value in case.items() if key.startswith("sd/")}
    levels = _count(case, "feat_")
    channels = case["feat_0"].shape[1]
    head = CenterNetHead(channels, levels, HeadOptions(num_classes=0, agnostic=True, cls_convs=0))
    head.load_state_dict(state)
    boxes, agnostic, classes = head([_tensor(case[f"feat_{level}"]) for level in range(levels)])
    assert classes is None
    assert agnostic is not None
    for level in range(levels):
        np.testing.assert_allclose(
            boxes[level].detach(), case[f"out_reg_{level}"], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            agnostic[level].detach(), case[f"out_agn_{level}"], rtol=1e-4, atol=1e-5
        )


def test_weak_batches_have_the_same_loss_names_and_zero_gradients() -> None:
    head = CenterNetHead(8, 2, HeadOptions(num_classes=0, agnostic=True, norm="", cls_convs=0))
    options = TargetOptions(strides=(8, 16), sizes=((0, 64), (64, 1e7)))
    generator = CenterNet(in_features=["a", "b"], head=head, targets=options).train()
    features = {"a": torch.randn(2, 8, 8, 8), "b": torch.randn(2, 8, 4, 4)}
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64), (64, 64)])
    truth = []
    for boxes in (torch.tensor([[4.0, 4, 40, 40]]), torch.zeros(0, 4)):
        found = Instances((64, 64))
        found.gt_boxes = Boxes(boxes)
        found.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
        truth.append(found)
    _, full = generator(images, features, truth)
    _, weak = generator.propose_without_targets(images, features)
    assert set(full) == set(weak)
    sum(weak.values()).backward()
    assert all(not p.grad.any() for p in generator.parameters())
