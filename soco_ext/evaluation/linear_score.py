"""Top-1 and top-5 accuracy of the linear evaluation, during and after training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ext_common.registries import TRAIN_HOOK_REGISTRY
from soco_ext.evaluation.linear import LinearClassifier
from soco_ext.evaluation.linear_data import build_linear_test_loader

logger = logging.getLogger(__name__)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Percent of the images whose class has the highest score, or one of the five highest.

    Args:
        model: gives scores [N, C] in evaluation mode; the mode it was in comes back.
        batches: this process' part; all processes take part.
    """
    training = model.training
    model.eval()
    counts = [0, 0, 0]
    for batch in batches:
        scores_NC = model(batch)
        labels_N1 = torch.tensor([[sample["label"]] for sample in batch], device=scores_NC.device)
        best = scores_NC.topk(min(5, scores_NC.shape[1]), dim=1).indices
        counts[0] += len(batch)
        counts[1] += int((best[:, :1] == labels_N1).sum())
        counts[2] += int((best == labels_N1).sum())
    model.train(training)
    images, first, five = (sum(column) for column in zip(*comm.all_gather(counts), strict=True))
    return {"top1": 100 * first / max(images, 1), "top5": 100 * five / max(images, 1)}


class LinearScore(HookBase):
    """Scores ``SOCO.LINEAR.TEST`` every ``TEST.EVAL_PERIOD`` iterations and at the end.

    Args:
        cfg: of the run.
        model: in every process.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._cfg = cfg
        self._model = model

    def after_step(self) -> None:
        """Score where it is due."""
        done, period = self.trainer.iter + 1, self._cfg.TEST.EVAL_PERIOD
        if done >= self.trainer.max_iter or (period > 0 and done % period == 0):
            name = self._cfg.SOCO.LINEAR.TEST
            found = accuracy(self._model, build_linear_test_loader(self._cfg, name))
            for key, value in found.items():
                self.trainer.storage.put_scalar(f"linear/{key}", value, smoothing_hint=False)
            logger.info("%s: top-1 %.2f %%, top-5 %.2f %%", name, found["top1"], found["top5"])


@TRAIN_HOOK_REGISTRY.register()
def build_linear_hooks(cfg: CfgNode, trainer: Any) -> list[HookBase]:
    """The scores of a linear evaluation; none for other models."""
    if not isinstance(trainer.model, LinearClassifier) or not cfg.SOCO.LINEAR.TEST:
        return []
    return [LinearScore(cfg, trainer.model)]
