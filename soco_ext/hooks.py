"""Trainer hooks of the pretraining: the target's step counter, and the monitor of collapse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ext_common.registries import TRAIN_HOOK_REGISTRY
from soco_ext.losses.collapse import alignment, embedding_spread, uniformity
from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.momentum import momentum_at


class TargetStep(HookBase):
    """Keeps the target's step counter in checkpoints; the released code starts anew at a resume.

    Args:
        model: whose counter it is.
    """

    def __init__(self, model: ContrastiveModel) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The number of updates so far."""
        return {"ema_step": self._model.ema_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._model.ema_step = int(state_dict["ema_step"])


class CollapseMonitor(HookBase):
    """Writes what tells a collapse: ``collapse/std``, ``/alignment``, ``/uniformity``, ``/momentum``.

    Args:
        model: its last step is looked at, in the main process.
        period: steps between two looks; the host waits for the device then.
    """

    def __init__(self, model: ContrastiveModel, period: int) -> None:
        self._model = model
        self._period = period

    def after_step(self) -> None:
        """Measure where it is due."""
        due = (self.trainer.iter + 1) % self._period == 0
        if not due or self._model.last is None or not comm.is_main_process():
            return
        for name, value in self.measure().items():
            self.trainer.storage.put_scalar(f"collapse/{name}", value, smoothing_hint=False)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The values of the last step; alignment is left out where no boxes corresponded."""
        seen, options = self._model.last, self._model.momentum
        if seen is None:
            return {}
        step = max(self._model.ema_step - 1, 0)
        found = {
            "std": float(embedding_spread(seen.vectors_RC)),
            "uniformity": float(uniformity(seen.vectors_RC)),
            "momentum": momentum_at(step, options.steps, options.base),
        }
        positives = seen.positives_NMM[seen.matrix_NMM > 0]
        if len(positives):
            found["alignment"] = float(alignment(positives))
        return found


@TRAIN_HOOK_REGISTRY.register()
def build_soco_hooks(cfg: CfgNode, trainer: Any) -> list[HookBase]:
    """The hooks of a SoCo model; none for others."""
    model = trainer.model
    if not isinstance(model, ContrastiveModel):
        return []
    made: list[HookBase] = [TargetStep(model)]
    if cfg.SOCO.MONITOR.PERIOD > 0:
        made.append(CollapseMonitor(model, cfg.SOCO.MONITOR.PERIOD))
    return made
