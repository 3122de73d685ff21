"""One optimisation step: forward, backward, and an update only if every loss is finite.

Works without detectron2's trainer and without a cfg. The device is asked once per step whether the
losses were finite, and not before the backward pass is queued; nothing else waits for it.

Shapes: K losses of one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ext_common.errors import ConfigError, ExtError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_MOST_IMAGES_NAMED = 8


class NonFiniteLossError(ExtError, FloatingPointError):
    """A loss became NaN or infinite. The weights are those of the step before."""


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


class TrainStep:
    """Runs training steps of a model that returns a dict of losses.

    Args:
        model: in training mode, on its device. With several processes it is wrapped in
            DistributedDataParallel here; callers keep the plain model.
        optimizer: over the model's parameters; clipping belongs to its ``step``.
        precision: mixed precision and its scaler.
        find_unused_parameters: batches may leave parts of the model without gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        find_unused_parameters: bool = True,
    ) -> None:
        self.optimizer = optimizer
        self.precision = precision
        self._losses: nn.Module = _StackedLosses(model)
        if comm.get_world_size() > 1:
            device = next(model.parameters()).device
            self._losses = DistributedDataParallel(
                self._losses,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=find_unused_parameters,
            )

    def __call__(self, batch: Any, iteration: int = 0) -> StepLosses:
        """Train on one batch.

        Args:
            batch: what the model takes; detectron2's list of dicts, for messages.
            iteration: for messages.

        Raises:
            NonFiniteLossError: in every process, if a loss of any process is not finite; no
                process has updated its weights then.
            ExtError: the model returned something else than losses.
        """
        with self.precision.autocast():
            names, values_K = self._forward(batch, iteration)
        detached_K = values_K.detach()
        finite = _DelayedFlag(torch.isfinite(detached_K).all())
        self.optimizer.zero_grad(set_to_none=True)
        scaler = self.precision.scaler
        scaler.scale(values_K.sum()).backward()
        if not finite.result():
            raise _non_finite(names, detached_K, batch, iteration)
        scaler.step(self.optimizer)
        scaler.update()
        return StepLosses(names, detached_K)

    def _forward(self, batch: Any, iteration: int) -> tuple[tuple[str, ...], Tensor]:
        try:
            names, values_K = self._losses(batch)
        except FloatingPointError as error:  # detectron2's proposal generators look themselves
            raise NonFiniteLossError(
                f"{error} Iteration {iteration}.", where=_images(batch), fix=_ADVICE
            ) from error
        return names, values_K


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


class _DelayedFlag:
    """A boolean on the device, agreed on by all processes, read later without a full stop.

    On a GPU the exchange and the copy to the host run beside the main stream. When :meth:`result`
    is called the backward pass is queued, so the device goes on working while the host waits.
    """

    def __init__(self, flag: Tensor) -> None:
        self._number = flag.to(torch.float32)  # kept alive until it is read
        self._work = None
        if comm.get_world_size() > 1:
            self._work = dist.all_reduce(self._number, op=dist.ReduceOp.MIN, async_op=True)
        self._copied: torch.cuda.Event | None = None
        if flag.device.type == "cuda":
            self._copy_beside()

    def _copy_beside(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        on_host = torch.empty((), dtype=torch.float32, pin_memory=True)
        with torch.cuda.stream(stream):
            if self._work is not None:
                self._work.wait()  # of this stream, not of the host
            on_host.copy_(self._number, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._on_host = on_host

    def result(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
            return bool(self._on_host)
        if self._work is not None:
            self._work.wait()
        return bool(self._number)


_ADVICE = "lower SOLVER.BASE_LR, clip gradients, or look at the annotations of these images"


def _non_finite(
    names: Sequence[str], values_K: Tensor, batch: Any, iteration: int
) -> NonFiniteLossError:
    """The same error in every process; it names the first process whose losses are not finite."""
    mine = (dict(zip(names, values_K.tolist(), strict=True)), _images(batch))
    for rank, (losses, images) in enumerate(comm.all_gather(mine)):
        total = sum(losses.values())
        if total - total != 0:  # NaN or infinite
            shown = ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
            place = f"process {rank}, {images}" if comm.get_world_size() > 1 else images
            return NonFiniteLossError(
                f"non-finite loss at iteration {iteration}: {shown}", where=place, fix=_ADVICE
            )
    return NonFiniteLossError(f"non-finite loss at iteration {iteration}", fix=_ADVICE)


def _images(batch: Any) -> str:
    """Which images are in a batch, as short text."""
    if not isinstance(batch, Sequence):
        return "a batch without image ids"
    ids = [
        str(item.get("image_id", item.get("file_name", "?")))
        for item in batch
        if isinstance(item, Mapping)
    ]
    rest = len(ids) - _MOST_IMAGES_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return (
        f"images {', '.join(ids[:_MOST_IMAGES_NAMED])}{more}"
        if ids
        else "a batch without image ids"
    )
