"""One run of the backbone for several views against one run per view."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ext_common.errors import ConfigError
from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.grouped_norm import (
    GroupedBatchNorm2d,
    GroupedSyncBatchNorm,
    NormOfGroups,
    norms_in_groups,
)
from soco_ext.modeling.resnet import ResNet
from soco_ext.modeling.shared_norm import (
    GroupedSharedBatchNorm,
    SharedBatchNorm,
    is_synchronised,
    synchronised,
)
from soco_ext.modeling.view_batch import collate
from soco_ext.modeling.view_passes import maps_of_views
from tests.soco_ext.test_model import CPU, doubled, make
from tests.soco_ext.tiny_soco import samples

# views 1 and 2 share a run; then views 4 and 5, but not 2 and 4
VIEWS = {"SoCoFPN": (64, 64, 48), "SoCoC4": (64, 64), "SoCoFPN, more views": (64, 64, 48, 64, 64)}


def step(kind: str, *words: Any) -> tuple[ContrastiveModel, list[Tensor]]:
    """A model after forward and backward in float64, and its losses."""
    model = make(kind.partition(",")[0], *words).double()
    terms = model.directed_terms(doubled(collate(samples(2, 0, VIEWS[kind]), CPU)))
    torch.stack(terms).sum().backward()
    return model, [term.detach() for term in terms]


@pytest.mark.parametrize("kind", VIEWS)
def test_grouped_passes_are_the_released_computation(kind: str) -> None:
    each, wanted = step(kind)
    grouped, found = step(kind, "SOCO.VIEW_PASSES", "grouped")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for (name, p), q in zip(each.named_parameters(), grouped.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, p), q in zip(each.named_buffers(), grouped.buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-10, atol=1e-12, msg=name)


def test_joint_passes_are_another_function() -> None:
    each, wanted = step("SoCoFPN")
    joint, found = step("SoCoFPN", "SOCO.VIEW_PASSES", "joint")
    assert all(abs(float(a - b)) > 1e-6 for a, b in zip(found, wanted, strict=True))
    # three views: a run for the two of one size, and one more
    assert int(each.encoder.bn1.num_batches_tracked) == 3
    assert int(joint.encoder.bn1.num_batches_tracked) == 2


def test_only_neighbours_of_one_size_share_a_run() -> None:
    seen: list[int] = []

    def run(view: Tensor) -> list[Tensor]:
        seen.append(len(view))
        return [view + 1, view * 2]

    views = [torch.rand(2, 3, side, side) for side in (8, 8, 4, 8)]
    found = maps_of_views(run, [], views, "grouped")
    assert seen == [4, 2, 2]
    for view, (first, second) in zip(views, found, strict=True):
        assert torch.equal(first, view + 1)
        assert torch.equal(second, view * 2)


def test_norms_leave_their_groups_also_after_an_error() -> None:
    encoder = ResNet.of_depth(18, base_width=4)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(isinstance(norm, GroupedBatchNorm2d) for norm in norms)
    told: set[int] = set()
    norms[0].register_forward_pre_hook(lambda norm, _: told.add(norm.groups))
    with norms_in_groups([encoder], 3), pytest.raises(RuntimeError):
        encoder(torch.rand(3, 3, 32, 31, 1))
    with norms_in_groups([encoder], 3):
        encoder(torch.rand(3, 3, 64, 64))
    assert told == {3}
    with pytest.raises(ValueError, match="stop"), norms_in_groups([encoder], 2):
        raise ValueError("stop")
    assert {norm.groups for norm in norms} == {1}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_synchronised_norms_take_groups_too(device: str) -> None:
    wanted = {"cuda": nn.SyncBatchNorm, "cpu": SharedBatchNorm}[device]
    grouped = {"cuda": GroupedSyncBatchNorm, "cpu": GroupedSharedBatchNorm}[device]
    before = make()
    state = {name: value.clone() for name, value in before.state_dict().items()}
    model = synchronised(before, device)
    assert {type(m) for m in model.encoder_k.modules() if is_synchronised(m)} == {grouped}
    assert {type(m) for m in model.projector.modules() if is_synchronised(m)} == {wanted}
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    assert issubclass(grouped, NormOfGroups)
    assert model.training
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SOCO\.VIEW_PASSES.*'both'.*each or grouped or joint"):
        make("SoCoFPN", "SOCO.VIEW_PASSES", "both")


@pytest.mark.parametrize("kind", ["SoCoFPN", "SoCoC4"])
def test_memory_layout_does_not_change_the_numbers(kind: str) -> None:
    own, wanted = step(kind, "SOCO.CHANNELS_LAST", False)
    last, found = step(kind, "SOCO.CHANNELS_LAST", True)
    assert own.encoder_k.conv1.weight.is_contiguous()
    for part in (last.encoder, last.encoder_k):
        assert part.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for (name, p), q in zip(own.named_parameters(), last.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-9, msg=name)
