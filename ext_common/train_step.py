"""One optimisation step: forward, backward, and an update only if losses and gradients are finite.

Works without detectron2's trainer and without a cfg. The device is asked once per step whether all
was finite, and not before the backward pass is queued; nothing else waits for it.

Shapes: K losses of one step, F flags.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ext_common.errors import ConfigError, ExtError
from ext_common.micro_batches import CountsMicroBatches, MicroBatches, mean_by_name
from ext_common.non_finite import NonFiniteStep, ProcessStep, gradient_norms, image_ids

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step, still on the device.

    Args:
        names: K names, as the model gave them.
        values_K: float32, detached.
    """

    names: tuple[str, ...]
    values_K: Tensor


class Precision:
    """Mixed precision of the forward pass.

    Args:
        device_type: ``cuda`` or ``cpu``.
        enabled: False = float32 throughout.
        dtype: ``float16`` (losses are scaled, steps with overflowing gradients are skipped) or
            ``bfloat16``.

    Raises:
        ConfigError: another dtype.
    """

    def __init__(self, device_type: str, *, enabled: bool = False, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise ConfigError(
                f"{dtype!r} is not known",
                where="SOLVER.AMP.DTYPE",
                fix=f"one of {', '.join(DTYPES)}",
            )
        self.device_type = device_type
        self.enabled = enabled
        self.dtype = DTYPES[dtype]
        self.scaler = torch.amp.GradScaler(
            device_type, enabled=enabled and self.dtype is torch.float16
        )

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)


@dataclass(frozen=True)
class StepOptions:
    """What a step does apart from training.

    Args:
        find_unused_parameters: batches may leave parts of the model without gradient.
        check_gradients: look for NaN and infinity in the gradients too. With float16 the scaler
            does that itself: it skips the step and lowers the scale.
        skip_non_finite: this many steps of a run are left out instead of ending it.
        on_non_finite: told about every such step, in every process, before it ends the run.
        stop_asked: whether this process was asked to end the run.
    """

    find_unused_parameters: bool = True
    check_gradients: bool = True
    skip_non_finite: int = 0
    on_non_finite: Callable[[NonFiniteStep], None] | None = None
    stop_asked: Callable[[], bool] = bool


class TrainStep:
    """Runs training steps of a model that returns a dict of losses.

    Args:
        model: in training mode, on its device. With several processes it is wrapped in
            DistributedDataParallel here; callers keep the plain model.
        optimizer: over the model's parameters; clipping belongs to its ``step``.
        precision: mixed precision and its scaler.
        options: see there.

    Attributes:
        stop_agreed: some process was asked to stop before the last step; the same everywhere.
        skipped: steps left out so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        options: StepOptions | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.precision = precision
        self.options = options or StepOptions()
        self.stop_agreed = False
        self.skipped = 0
        self._model = model
        self._losses: nn.Module = _StackedLosses(model)
        if comm.get_world_size() > 1:
            device = next(model.parameters()).device
            self._losses = DistributedDataParallel(
                self._losses,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=self.options.find_unused_parameters,
            )

    def state_dict(self) -> dict[str, Any]:
        """What has to be restored with the weights."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.skipped = int(state_dict["skipped"])

    def __call__(self, batch: Any, iteration: int = 0) -> StepLosses | None:
        """Train on one batch, or on several with one update (gradient accumulation).

        Args:
            batch: what the model takes (detectron2's list of dicts, for messages), or
                ``MicroBatches`` of it; their losses are averaged.
            iteration: for messages.

        Returns:
            The losses, or None where the step was left out because they were not finite.

        Raises:
            NonFiniteLossError: in every process, if a loss or gradient of any process is not
                finite; no process has updated its weights then.
            ExtError: the model returned something else than losses.
        """
        parts = batch.parts if isinstance(batch, MicroBatches) else (batch,)
        seen = batch.samples() if isinstance(batch, MicroBatches) else batch
        stop_asked = self.options.stop_asked()
        self.optimizer.zero_grad(set_to_none=True)
        found: list[StepLosses] = []
        try:
            for index, part in enumerate(parts[:-1]):
                with self._without_exchange():
                    losses, values_K = self._forward(part, index, len(parts))
                    found.append(losses)
                    self._backward(values_K, len(parts))
            losses, values_K = self._forward(parts[-1], len(parts) - 1, len(parts))
            found.append(losses)
        except FloatingPointError as error:  # detectron2's proposal generators look themselves
            # the other processes go on to exchange gradients: only a lone one can leave it out
            self._leave_out(
                self._describe({}, seen, iteration, reason=str(error)),
                allowed=comm.get_world_size() == 1,
            )
            self.stop_agreed = stop_asked
            return None
        result = found[0] if len(found) == 1 else _mean_losses(found)
        finite_K = torch.isfinite(result.values_K)
        agreement = _Agreement(finite_K.all(), go_on=not stop_asked)
        self._backward(values_K, len(parts))
        finite, go_on = agreement.result(self._gradients_finite())
        self.stop_agreed = not go_on
        if not finite:
            values = dict(zip(result.names, result.values_K.tolist(), strict=True))
            self._leave_out(self._describe(values, seen, iteration))
            return None
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        return result

    def _forward(self, batch: Any, index: int, count: int) -> tuple[StepLosses, Tensor]:
        """The losses, detached and with their graph."""
        model: object = self._model
        if isinstance(model, CountsMicroBatches):
            model.set_micro_batch(index, count)
        with self.precision.autocast():
            names, values_K = self._losses(batch)
        return StepLosses(names, values_K.detach()), values_K

    def _backward(self, values_K: Tensor, count: int) -> None:
        total = values_K.sum()
        self.precision.scaler.scale(total if count == 1 else total / count).backward()

    def _without_exchange(self) -> Any:
        """Gradients stay in this process: they are exchanged with those of the last batch."""
        if isinstance(self._losses, DistributedDataParallel):
            return self._losses.no_sync()
        return nullcontext()

    def _gradients_finite(self) -> Tensor | None:
        """On the device, and the same in all processes, which share their gradients by now."""
        if not self.options.check_gradients or self.precision.scaler.is_enabled():
            return None
        found = [p.grad for p in self._model.parameters() if p.grad is not None]
        # the largest magnitude: squares of large finite numbers would overflow
        return torch.isfinite(nn.utils.get_total_norm(found, math.inf)) if found else None

    def _describe(
        self, losses: dict[str, float], batch: Any, iteration: int, reason: str = ""
    ) -> NonFiniteStep:
        mine = ProcessStep(losses, image_ids(batch))
        return NonFiniteStep(
            iteration=iteration,
            # after an error of the model the others do not come here
            processes=(mine,) if reason else tuple(comm.all_gather(mine)),
            gradient_norms=gradient_norms(self._model, self.precision.scaler.get_scale()),
            learning_rates=tuple(group["lr"] for group in self.optimizer.param_groups),
            reason=reason,
        )

    def _leave_out(self, step: NonFiniteStep, *, allowed: bool = True) -> None:
        if self.options.on_non_finite is not None:
            self.options.on_non_finite(step)
        if not allowed or self.skipped >= self.options.skip_non_finite:
            raise step.error()
        self.skipped += 1
        logger.warning(
            "Step left out (%d of at most %d): %s",
            self.skipped,
            self.options.skip_non_finite,
            step.error(),
        )
        self.optimizer.zero_grad(set_to_none=True)


def _mean_losses(found: list[StepLosses]) -> StepLosses:
    """The losses of a step with several batches: their means."""
    means = mean_by_name(
        (zip(losses.names, losses.values_K.unbind(), strict=True) for losses in found), len(found)
    )
    return StepLosses(tuple(means), torch.stack(list(means.values())))


class _StackedLosses(nn.Module):
    """The model's losses as one tensor, so that DDP sees one output that needs a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[tuple[str, ...], Tensor]:
        losses = self.model(batch)
        if isinstance(losses, Tensor):
            losses = {"total_loss": losses}
        if not isinstance(losses, Mapping) or not losses:
            raise ExtError(
                f"the model returned {type(losses).__name__} {str(losses)[:60]} in training",
                fix="a dict of scalar losses is needed",
            )
        names = tuple(losses)
        for name, value in losses.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ExtError(f"loss {name!r} is {shape}", fix="a scalar tensor is needed")
        values_K = torch.stack([value.float().reshape(()) for value in losses.values()])
        if not values_K.requires_grad:
            # a batch that teaches nothing must still take part in the gradient exchange
            anchor = next(p for p in self.model.parameters() if p.requires_grad)
            values_K = values_K + anchor.sum() * 0.0
        return names, values_K


class _Agreement:
    """Are all losses finite, does nobody ask to stop: agreed on by all processes, read later.

    On a GPU the exchange and the copy to the host run beside the main stream. When :meth:`result`
    is called the backward pass is queued, so the device goes on working while the host waits.
    """

    def __init__(self, finite: Tensor, *, go_on: bool) -> None:
        number = finite.to(torch.float32)
        self._flags_F = torch.stack([number, torch.full_like(number, float(go_on))])
        if finite.device.type == "cuda":
            # before the backward pass is queued
            self._ready = torch.cuda.Event()
            self._ready.record()
        self._work = None
        if comm.get_world_size() > 1:
            self._work = dist.all_reduce(self._flags_F, op=dist.ReduceOp.MIN, async_op=True)

    def result(self, gradients_finite: Tensor | None) -> tuple[bool, bool]:
        """Both answers; without gradients to wait for, the host waits for the losses only."""
        if gradients_finite is None and self._flags_F.device.type == "cuda":
            return self._read_beside()
        if self._work is not None:
            self._work.wait()
        finite, go_on = self._flags_F
        if gradients_finite is not None:
            finite = finite * gradients_finite
        code = int(2 * finite + go_on)  # one number, one transfer
        return code >= 2, code % 2 == 1

    def _read_beside(self) -> tuple[bool, bool]:
        stream = torch.cuda.Stream()
        stream.wait_event(self._ready)
        on_host_F = torch.empty(2, dtype=torch.float32, pin_memory=True)
        with torch.cuda.stream(stream):
            if self._work is not None:
                self._work.wait()  # of this stream, not of the host
            on_host_F.copy_(self._flags_F, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        copied.synchronize()
        return bool(on_host_F[0]), bool(on_host_F[1])
