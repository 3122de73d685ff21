"""The models beyond the golden numbers: twins, the target network, bad batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.soco_steps import plain_embed
from ext_common.errors import ConfigError, DatasetError, ExtError
from ext_common.modeling.build import build_model
from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.momentum import freeze_as_copy
from soco_ext.modeling.pyramid_model import SoCoFPN
from soco_ext.modeling.resnet import DEPTHS, ResNet
from soco_ext.modeling.view_batch import BoxSet, ViewBatch, collate
from tests.soco_ext.tiny_soco import SIZES, samples, tiny_config

CPU = torch.device("cpu")


def make(model: str = "SoCoFPN", *words: Any) -> ContrastiveModel:
    torch.manual_seed(0)
    built = build_model(tiny_config(model, *words))
    assert isinstance(built, ContrastiveModel)
    for module in built.modules():  # residual branches start at zero: give them something to do
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for name, target in built.target.items():
        freeze_as_copy(target, built.online[name])
    return built.train()


def test_one_grouped_run_equals_a_run_per_set_and_level() -> None:
    ours, twin = make().double(), make().double()
    batch = doubled(collate(samples(2, 0), CPU))
    actual = ours.embed(ours.online, batch.views, batch.sets)
    expected = plain_embed(twin.online, batch)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    sum(a.square().sum() for a in actual).backward()  # type: ignore[union-attr]
    sum(b.square().sum() for b in expected).backward()  # type: ignore[union-attr]
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, p), q in zip(ours.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=name)


def doubled(batch: ViewBatch) -> ViewBatch:
    pairs = [
        copy.copy(pair).__class__(*(_double_set(s) for s in (pair.first, pair.second)))
        for pair in batch.pairs
    ]
    return ViewBatch([view.double() for view in batch.views], pairs)


def _double_set(box_set: BoxSet) -> BoxSet:
    return BoxSet(box_set.view, box_set.boxes_NK5.double(), box_set.levels_NK)


def without_norms(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(model, name, nn.Identity())
        else:
            without_norms(child)
    return model


def test_sparse_levels_give_the_same_loss_where_no_norm_mixes_boxes() -> None:
    dense = without_norms(make()).double()
    sparse = without_norms(make("SoCoFPN", "SOCO.LEVEL_USE", "sparse")).double()
    sparse.load_state_dict(dense.state_dict())
    batch = doubled(collate(samples(3, 1), CPU))
    a, b = dense(batch), sparse(batch)
    assert a.keys() == b.keys() == {"loss_12", "loss_13"}
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12)
    assert a["loss_12"].abs() > 1e-3
    sum(a.values()).backward()  # type: ignore[union-attr]
    sum(b.values()).backward()  # type: ignore[union-attr]
    for p, q in zip(dense.parameters(), sparse.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10)


def test_losses_of_samples_match_matrices_made_by_loops() -> None:
    model = make().double()
    batch = doubled(collate(samples(2, 2), CPU))
    before = copy.deepcopy(model)
    losses = model(batch)
    with torch.no_grad():
        online = before.embed(before.online, batch.views, batch.sets)
        before.update_target()
        target = before.embed(before.target, batch.views, batch.sets)
        count = len(batch.pairs)
        for i, pair in enumerate(batch.pairs):
            total = 0.0
            for a, b in ((i, count + i), (count + i, i)):
                first, second = (pair.first, pair.second) if a == i else (pair.second, pair.first)
                total += loop_loss(online[a], target[b], first, second)
            name = f"loss_{pair.first.view + 1}{pair.second.view + 1}"
            assert losses[name].item() == pytest.approx(total, rel=1e-6)


def loop_loss(q_NMC: Tensor, k_NMC: Tensor, first: BoxSet, second: BoxSet) -> float:
    """Specification 3.2 and 2.6, with loops."""
    assert first.levels_NK is not None
    assert second.levels_NK is not None
    images, boxes = first.levels_NK.shape
    total = 0.0
    for n in range(images):
        similarity, count = 0.0, 0
        for i in range(boxes):
            for j in range(boxes):
                p, q = int(first.levels_NK[n, i]), int(second.levels_NK[n, j])
                same = first.boxes_NK5[n, i, 4] == second.boxes_NK5[n, j, 4]
                if p < 0 or q < 0 or not same:
                    continue
                a, b = q_NMC[n, p * boxes + i], k_NMC[n, q * boxes + j]
                similarity += float(a @ b / (a.norm() * b.norm()))
                count += 1
        total += similarity / (count + 1e-6)
    return -2.0 * total / images


def test_target_moves_once_per_step_and_only_its_weights() -> None:
    model = make()
    assert not any(p.requires_grad for name, p in model.named_parameters() if "_k." in name)
    torch.testing.assert_close(model.encoder_k.state_dict(), model.encoder.state_dict())
    with torch.no_grad():
        model.projector.linear1.bias.add_(1.0)
    expected = model.projector_k.linear1.bias + (1 - 0.99)
    for index in range(3):
        model.set_micro_batch(index, 3)
        model(samples(2, index))
    assert model.ema_step == 1
    torch.testing.assert_close(model.projector_k.linear1.bias, expected)
    assert int(model.projector_k.bn1.num_batches_tracked) == 3 * 16
    assert model.projector_k.linear1.bias.grad is None


def test_c4_uses_ids_alone_and_pools_on_the_map_of_stride_16() -> None:
    model = make("SoCoC4")
    batch = collate(samples(2, 0, SIZES["SoCoC4"]), CPU)
    losses = model(batch)
    losses["loss_12"].backward()
    assert set(losses) == {"loss_12"}
    assert model.matrix(batch.pairs[0]).shape == (2, 3, 3)
    assert model.matrix(batch.pairs[0])[0].sum() == 1 + 4  # the repeated id crosses
    assert model.encoder.layer4[0].conv1.weight.grad.abs().sum() > 0
    vectors = model.eval().embed_boxes(batch.views[0], batch.pairs[0].first.boxes_NK5)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2, 3))


def test_any_number_of_views_and_pairs() -> None:
    model = make()
    losses = model(samples(2, 0, (64, 48, 64, 48, 64)))
    assert list(losses) == ["loss_12", "loss_13", "loss_14", "loss_15"]


def test_embeddings_of_boxes_do_not_depend_on_their_company() -> None:
    model = make().eval()
    box_set = collate(samples(2, 0), CPU).pairs[0].first
    views = torch.randn(2, 3, 64, 64)
    both = model.embed_boxes(views, box_set.boxes_NK5, box_set.levels_NK)
    one = model.embed_boxes(views[:1], box_set.boxes_NK5[:1, :1], box_set.levels_NK[:1, :1])
    torch.testing.assert_close(both[:1, :1], one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("depth", sorted(DEPTHS))
def test_every_depth_has_the_strides_of_a_resnet(depth: int) -> None:
    encoder = ResNet.of_depth(depth, base_width=4)
    shapes = [tuple(x.shape[1:]) for x in encoder(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(c, 16 >> i, 16 >> i) for i, c in enumerate(encoder.channels)]
    last = "bn3" if depth >= 50 else "bn2"
    assert all((getattr(b, last).weight == 0).all() for b in encoder.layer3)


def test_unknown_depth_and_level_use_are_refused() -> None:
    with pytest.raises(ConfigError, match="ResNet-51"):
        ResNet.of_depth(51)
    with pytest.raises(ConfigError, match=r"SOCO\.LEVEL_USE"):
        make("SoCoFPN", "SOCO.LEVEL_USE", "some")


def test_batches_that_batch_norm_cannot_take_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH.*batch norm needs two values"):
        make()(samples(1, 0, (32, 32, 32)))
    one_box = samples(1, 0, (64, 64, 64), boxes=2)
    for pair in one_box[0]["pairs"]:
        pair["boxes"] = tuple(boxes[:1] for boxes in pair["boxes"])
        pair["levels"] = tuple(levels[:1] for levels in pair["levels"])
    with pytest.raises(ConfigError, match="batch norm"):
        make()(one_box)


def test_wrong_samples_and_evaluation_are_explained() -> None:
    with pytest.raises(DatasetError, match=r"this one has image.*SoCoViews"):
        make()([{"image": torch.zeros(3, 8, 8)}])
    mixed = [*samples(1, 0), *samples(1, 0, (64, 64, 64))]
    with pytest.raises(DatasetError, match="2 kinds of views"):
        make()(mixed)
    with pytest.raises(ExtError, match=r"DATASETS\.TEST"):
        make().eval()(samples(2, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_compares_in_full_precision(dtype: torch.dtype) -> None:
    model = make()
    with torch.autocast("cpu", dtype=dtype):
        losses = model(samples(2, 0))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert isinstance(model, SoCoFPN)
