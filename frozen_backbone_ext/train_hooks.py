"""Hooks: a frozen trunk must have weights; checkpoints without it; a moving average of the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ext_common.atomic_file import writing
from ext_common.errors import WeightsError
from ext_common.registries import TRAIN_HOOK_REGISTRY
from frozen_backbone_ext.model_setup import frozen_trunk, has_own_weights
from frozen_backbone_ext.modeling.freezing import FrozenTrunk, state_without_trunk
from frozen_backbone_ext.modeling.trunk import find_trunk

logger = logging.getLogger(__name__)


@TRAIN_HOOK_REGISTRY.register()
def build_frozen_backbone_hooks(cfg: CfgNode, trainer: Any) -> list[HookBase]:
    """The hooks that the configuration asks for."""
    made: list[HookBase] = []
    trunk = frozen_trunk(trainer.model)
    if trunk is not None:
        made.append(TrunkGuard(trunk, cfg))
        if not cfg.MODEL.BACKBONE_FREEZE.SAVE:
            trainer.checkpointer.model = WithoutTrunk(trainer.model)
    if cfg.SOLVER.EMA.ENABLED:
        average = MovingAverage(trainer.model, cfg.SOLVER.EMA.DECAY)
        trainer.checkpointer.parts["ema"] = average
        made.append(AverageHook(average, trainer.model, cfg.OUTPUT_DIR))
    return made


class TrunkGuard(HookBase):
    """Refuses to train on a frozen network that no weights were loaded into."""

    def __init__(self, trunk: FrozenTrunk, cfg: CfgNode) -> None:
        self._trunk = trunk
        self._cfg = cfg

    def before_train(self) -> None:
        """Look at the weights.

        Raises:
            WeightsError: they are as they were built.
        """
        allowed = self._cfg.MODEL.BACKBONE_FREEZE.ALLOW_RANDOM
        if not allowed and not has_own_weights(self._trunk, self._cfg):
            raise WeightsError(
                "no weights were loaded into the frozen backbone: it would stay random",
                where="MODEL.WEIGHTS",
                fix="give weights that cover it, or set MODEL.BACKBONE_FREEZE.ALLOW_RANDOM True",
            )


class WithoutTrunk(nn.Module):
    """The model as checkpoints see it: the frozen trunk is there by its hash only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["_model"] = model  # not a part: it would rename everything

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's, without the trunk's tensors and with their hash."""
        model = self.__dict__["_model"]
        name, trunk = find_trunk(model)
        assert isinstance(trunk, FrozenTrunk)
        return state_without_trunk(model, name, trunk)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load everything else; the hash must be that of the trunk that is there.

        Raises:
            WeightsError: it is another one.
        """
        model = self.__dict__["_model"]
        # whole: FrozenBatchNorm2d takes statistics that are not there for 0 and 1
        return model.load_state_dict({**model.state_dict(), **state_dict})


class MovingAverage:
    """Exponential average of a model's trained weights and their statistics.

    Args:
        model: frozen parameters, and what belongs to a frozen trunk, are left out.
        decay: share of the old average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trunk = frozen_trunk(model)
        stored = set(model.state_dict())
        buffers = () if trunk is None else trunk.named_buffers()
        frozen = {id(tensor) for name, tensor in buffers if "adapter" not in name}
        self.decay = decay
        self._live = {
            name: tensor
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()
            and (tensor.requires_grad or (not isinstance(tensor, nn.Parameter)))
            and id(tensor) not in frozen
            and name in stored
        }
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._restored = False

    @torch.no_grad()
    def start(self) -> None:
        """Begin with the weights as they are, unless an average was restored."""
        if not self._restored:
            for name, tensor in self._live.items():
                self._average[name].copy_(tensor)

    @property
    def live(self) -> list[Tensor]:
        """The model's tensors that are averaged."""
        return list(self._live.values())

    @torch.no_grad()
    def update(self) -> None:
        """Take one step into account."""
        averages, values = list(self._average.values()), list(self._live.values())
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        """The averages by name."""
        return dict(self._average)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            ValueError: of another model.
        """
        if set(state_dict) != set(self._average):
            raise ValueError("the moving average is of other weights")
        for name, tensor in self._average.items():
            tensor.copy_(state_dict[name])
        self._restored = True


class AverageHook(HookBase):
    """Updates the average, and writes ``model_ema.pth`` at the end."""

    def __init__(self, average: MovingAverage, model: nn.Module, folder: str) -> None:
        self.average = average
        self._model = model
        self._path = Path(folder) / "model_ema.pth"

    def averaged_tensors(self) -> list[Tensor]:
        """The model's tensors that the average is of (for the audit)."""
        return self.average.live

    def before_train(self) -> None:
        """By now the weights are loaded."""
        self.average.start()

    def after_step(self) -> None:
        """One update."""
        self.average.update()

    def after_train(self) -> None:
        """Write the averaged model, complete with what was frozen."""
        if not comm.is_main_process():
            return
        state = {**self._model.state_dict(), **self.average.state_dict()}
        with writing(self._path) as file:
            torch.save({"model": state}, file)
        logger.info("moving average of the weights: %s", self._path)
