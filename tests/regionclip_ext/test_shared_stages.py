"""Stages that student and teacher share are run once, change nothing, and are given up when they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from regionclip_ext.modeling.clip_resnet import ClipResNet
from regionclip_ext.modeling.pretrain.shared_stages import SharedStages, common_stages
from tests.regionclip_ext.pretrain_cases import STUDENT, random_config
from tests.regionclip_ext.pretrain_runs import batch_of_two, build_pretraining, step_losses

SAME = [
    ("CLIP.TEACHER_CUSTOM_ENCODER.WIDTH", STUDENT["width"]),
    ("CLIP.TEACHER_CUSTOM_ENCODER.LAYERS", STUDENT["layers"]),
    ("CLIP.TEACHER_CUSTOM_ENCODER.HEADS", 2),
    ("CLIP.TEACHER_CUSTOM_ENCODER.EMBED_DIM", STUDENT["dim"]),
    ("CLIP.TEACHER_CUSTOM_ENCODER.RESOLUTION", STUDENT["res"]),
    ("CLIP.TEACHER_POOLER_RESOLUTION", STUDENT["res"] // 16),
    ("CLIP.TEACHER_CONCEPT_POOL_EMB", None),
    ("CLIP.CROP_REGION_TYPE", "FILE"),
]


def _twins(folder: Path, **more: Any) -> Any:
    """A model whose student starts as its teacher; later stages have moved on."""
    options = [*SAME, *((f"CLIP.{key}", value) for key, value in more.items())]
    model = build_pretraining(random_config(folder, options))
    model.teacher_backbone.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter *= 1.1
    return model


def _results(model: Any) -> dict[str, Tensor]:
    losses = step_losses(model, batch_of_two(proposals=True))
    torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**{n: loss.detach() for n, loss in losses.items()}, **gradients}


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_sharing_changes_no_loss_and_no_gradient(tmp_path: Path, bf16: bool) -> None:
    found = []
    for share in (True, False):
        model = _twins(tmp_path, PRETRAIN_SHARE_FROZEN=share)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(_results(model))
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        assert torch.equal(found[0][name], value), name


def test_the_first_stages_run_once_for_both(tmp_path: Path) -> None:
    model = _twins(tmp_path)
    with patch.object(ClipResNet, "first_stages", autospec=True) as run:
        run.side_effect = lambda encoder, images, stages=0: torch.randn(
            len(images), 16, images.shape[2] // 4, images.shape[3] // 4
        )
        step_losses(model, batch_of_two(proposals=True))
    assert [call.args[0] is model.backbone for call in run.call_args_list] == [True]
    assert run.call_args.args[2] == 1


def test_what_is_trained_or_differs_is_not_shared(tmp_path: Path) -> None:
    model = _twins(tmp_path)
    student, teacher = model.backbone, model.teacher_backbone
    shared = SharedStages()
    assert shared.stages(student, teacher) == 1  # FREEZE_AT 2: stem and layer1
    student.layer1.requires_grad_(True)
    assert shared.stages(student, teacher) == 0
    student.layer1.requires_grad_(False)
    before = {n: v.clone() for n, v in teacher.state_dict().items()}
    other = {**before, "layer1.0.bn2.running_mean": before["layer1.0.bn2.running_mean"] + 1}
    teacher.load_state_dict(other)
    assert shared.stages(student, teacher) == 0
    teacher.load_state_dict({**before, "bn1.weight": before["bn1.weight"] + 1})
    assert shared.stages(student, teacher) is None
    teacher.load_state_dict(before)
    assert shared.stages(student, teacher) == 1


def test_encoders_of_other_sizes_share_nothing(tmp_path: Path) -> None:
    model = build_pretraining(random_config(tmp_path, [("CLIP.CROP_REGION_TYPE", "FILE")]))
    assert common_stages(model.backbone, model.teacher_backbone) is None
    assert step_losses(model, batch_of_two(proposals=True))
