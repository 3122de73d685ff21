"""The audit proves a freeze, finds a broken one, and counts parameters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from ext_common.errors import ConfigError
from frozen_backbone_ext.audit import FreezeAudit, audit_steps
from frozen_backbone_ext.modeling.adapters import Adapter
from tests.dist.tiny_training import write_run
from tests.frozen_backbone_ext.tiny_frozen import frozen_model, item
from tools import train_net

ROOT = Path(__file__).parents[2]


def _audit(model: nn.Module) -> FreezeAudit:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, weight_decay=0.1)

    def step(number: int) -> None:
        optimizer.zero_grad()
        losses: dict[str, Any] = model([item()])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    with EventStorage(0):
        return audit_steps(model.train(), step, optimized=trained, averaged=trained)


def test_a_frozen_model_passes_and_is_told_to_be_small() -> None:
    audit = _audit(frozen_model())
    assert not audit.failed
    assert len(audit.proofs) == 5
    text = str(audit)
    assert "tensors saved for the backward pass in the trunk: 0, 0.0 MiB" in text
    assert "backbone (neck)" in text
    whole, trunk = audit.shares[-1], audit.shares[0]
    assert (trunk.part, trunk.trained) == ("backbone (trunk)", 0)
    assert whole.total == sum(share.total for share in audit.shares[:-1])
    assert ("warning" in text) == (audit.trained_share < 0.4)


def test_a_broken_freeze_is_found() -> None:
    model = frozen_model()
    trunk = model.backbone.bottom_up
    trunk.stem.conv1.weight.requires_grad_(True)
    trunk.train = lambda mode=True: nn.Module.train(trunk, mode)
    failed = {proof.what.split(" in ")[0]: proof.found for proof in _audit(model).failed}
    assert "trunk weights with a gradient" in failed
    assert any("changed" in what for what in failed)
    assert any("optimizer" in proof.what for proof in _audit(model).failed)


def test_adapters_are_told() -> None:
    changes = {
        "MODEL.BACKBONE.NAME": "build_adapted_backbone",
        "MODEL.ADAPTERS.BACKBONE": "build_resnet_fpn_backbone",
    }
    model = frozen_model(changes)
    audit = _audit(model)
    assert not audit.failed
    assert "it has adapters" in str(audit)
    adapters = sum(
        p.numel() for m in model.modules() if isinstance(m, Adapter) for p in m.parameters()
    )
    assert audit.shares[0].trained == adapters > 0


def test_a_model_without_freeze_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is frozen"):
        _audit(frozen_model({"MODEL.BACKBONE_FREEZE.POLICY": ""}))


def test_the_tool_prints_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path)
    words = ["--config-file", str(run.config_file), "--audit-freeze"]
    freeze = ["MODEL.BACKBONE_FREEZE.POLICY", "trunk", "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM", "True"]
    assert train_net.main([*words, *freeze]) == 0
    out = capsys.readouterr().out
    assert out.count("[ok]") == 5
    assert "warning" in out
    assert train_net.main([*words, "OUTPUT_DIR", str(tmp_path / "other")]) == 1
    assert "nothing is frozen" in capsys.readouterr().err
    assert not list(run.output.glob("*.pth"))


def test_two_processes_need_no_search_for_unused_parameters(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    command = [sys.executable, "tools/train_net.py", "--config-file", str(run.config_file)]
    options = ["--num-gpus", "2", "--audit-freeze", "FIND_UNUSED_PARAM", "False"]
    freeze = ["MODEL.BACKBONE_FREEZE.POLICY", "trunk", "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM", "True"]
    done = subprocess.run(
        [*command, *options, *freeze], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("[ok]") == 5
