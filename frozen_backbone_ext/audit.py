"""Proof that a frozen backbone is frozen, on the training that a configuration describes.

``tools/train_net.py --audit-freeze`` runs it; :func:`audit_steps` works without a trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ext_common.errors import ConfigError, ExtError
from ext_common.registries import AUDIT_REGISTRY
from frozen_backbone_ext.model_setup import frozen_trunk
from frozen_backbone_ext.modeling.freezing import FrozenTrunk
from frozen_backbone_ext.modeling.trunk import trunk_of

logger = logging.getLogger(__name__)

ENOUGH = 0.4
"""Below this trained share of the parameters the paper found freezing to hurt (spec 6)."""

_INPUT_STATISTICS = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Proof:
    """One statement about the training steps.

    Args:
        what: the statement.
        holds: whether it was found true.
        found: the number behind it.
    """

    what: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Share:
    """Size of one part of a model.

    Args:
        part: its name.
        total: parameters and stored statistics.
        trained: parameters that need a gradient.
    """

    part: str
    total: int
    trained: int


@dataclass(frozen=True)
class FreezeAudit:
    """What was found.

    Args:
        proofs: all hold, unless something is wrong.
        shares: of the parts of the model; the last one is the whole.
    """

    proofs: tuple[Proof, ...]
    shares: tuple[Share, ...]

    @property
    def failed(self) -> tuple[Proof, ...]:
        """Statements that are not true."""
        return tuple(proof for proof in self.proofs if not proof.holds)

    @property
    def trained_share(self) -> float:
        """Trained part of all parameters, 0..1."""
        whole = self.shares[-1]
        return whole.trained / max(whole.total, 1)

    def __str__(self) -> str:
        """Proofs, a table of the parts, and a warning where little is trained."""
        lines = [
            f"[{'ok' if proof.holds else 'FAILED'}] {proof.what}: {proof.found}"
            for proof in self.proofs
        ]
        lines.append(f"{'part':28} {'million':>9} {'trained':>9} {'share':>7}")
        for row in self.shares:
            share = row.trained / max(row.total, 1)
            lines.append(
                f"{row.part:28} {row.total / 1e6:9.3f} {row.trained / 1e6:9.3f} {share:7.1%}"
            )
        if self.trained_share < ENOUGH:
            lines.append(
                f"warning: {self.trained_share:.1%} of the parameters are trained; in the paper "
                f"freezing helps from about {ENOUGH:.0%} on (a larger neck or head, not plain FPN)"
            )
        return "\n".join(lines)


def parameter_shares(model: nn.Module) -> tuple[Share, ...]:
    """Sizes of a detector's parts, and of the whole; tensors may be on the meta device.

    Numbers are parameters and stored statistics, as in the paper's table.
    """
    parts: list[tuple[str, nn.Module, nn.Module | None]] = []
    for name, child in model.named_children():
        trunk = trunk_of(child) if name == "backbone" else child
        if trunk is not child:
            parts.append((f"{name} (trunk)", trunk, None))
            parts.append((f"{name} (neck)", child, trunk))
        else:
            parts.append((name, child, None))
    shares = [_share(name, module, without) for name, module, without in parts]
    whole = Share("model", sum(s.total for s in shares), sum(s.trained for s in shares))
    return (*shares, whole)


def audit_steps(
    model: nn.Module,
    step: Callable[[int], Any],
    *,
    steps: int = 2,
    optimized: Iterable[Tensor] = (),
    averaged: Iterable[Tensor] = (),
) -> FreezeAudit:
    """Train and look at the trunk.

    Args:
        model: with a frozen trunk, in training mode.
        step: one optimisation step; gets its number and leaves gradients in place.
        steps: how many; the model's mode is switched to evaluation and back in between.
        optimized: the tensors that the optimizer changes.
        averaged: the tensors that a moving average is kept of.

    Raises:
        ConfigError: the model has no frozen trunk.
    """
    trunk = frozen_trunk(model)
    if trunk is None:
        raise ConfigError(
            "nothing is frozen", where="MODEL.BACKBONE_FREEZE.POLICY", fix="set it to trunk"
        )
    kept = dict(_own_tensors(trunk))
    before = {name: tensor.detach().clone() for name, tensor in kept.items()}
    saved: list[int] = []
    for number in range(steps):
        if number:
            model.eval()
            model.train()
        with _saved_in(trunk, saved):
            step(number)
    changed = [name for name, tensor in kept.items() if not torch.equal(tensor, before[name])]
    graded = [name for name, t in kept.items() if t.grad is not None or t.requires_grad]
    ids = {id(tensor) for tensor in kept.values()}
    in_optimizer = sum(id(tensor) in ids for tensor in optimized)
    in_average = sum(id(tensor) in ids for tensor in averaged)
    adapters = trunk._frozen.has_adapters
    proofs = (
        Proof(
            "tensors saved for the backward pass in the trunk"
            + (" (it has adapters)" if adapters else ""),
            adapters or not saved,
            f"{len(saved)}, {sum(saved) / 2**20:.1f} MiB",
        ),
        Proof("trunk weights with a gradient", not graded, _some(graded)),
        Proof(
            f"weights and statistics changed in {steps} steps of training mode",
            not changed,
            f"{_some(changed)} of {len(kept)}",
        ),
        Proof("trunk tensors in the optimizer", not in_optimizer, str(in_optimizer)),
        Proof("trunk tensors in the moving average", not in_average, str(in_average)),
    )
    return FreezeAudit(proofs, parameter_shares(model))


def audit_trainer(trainer: Any) -> FreezeAudit:
    """Audit two steps of an ``ExtTrainer`` whose weights are loaded.

    Raises:
        ConfigError: nothing is frozen.
        ExtError: a statement does not hold.
    """
    batches = iter(trainer.data_loader)
    groups = trainer.optimizer.param_groups
    averages = [getattr(hook, "averaged_tensors", None) for hook in trainer._hooks]
    with EventStorage(0):
        audit = audit_steps(
            trainer.model,
            lambda number: trainer.train_step(next(batches), number),
            optimized=[p for group in groups for p in group["params"]],
            averaged=[t for tensors in averages if tensors is not None for t in tensors()],
        )
    if audit.failed:
        raise ExtError(f"the backbone is not frozen\n{audit}", where="--audit-freeze")
    if audit.trained_share < ENOUGH:
        logger.warning("only %.1f %% of the parameters are trained", 100 * audit.trained_share)
    return audit


def _own_tensors(trunk: FrozenTrunk) -> Iterator[tuple[str, Tensor]]:
    """The trunk's parameters and buffers without those of adapters."""
    for name, tensor in (*trunk.named_parameters(), *trunk.named_buffers()):
        if "adapter" not in name:
            yield name, tensor


@contextmanager
def _saved_in(trunk: nn.Module, sizes: list[int]) -> Iterator[None]:
    """Bytes of every tensor that autograd keeps while the trunk computes."""
    inside = [0]

    def enter(module: nn.Module, inputs: Any) -> None:
        inside[0] += 1

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        inside[0] -= 1

    def pack(tensor: Tensor) -> Tensor:
        if inside[0]:
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with ExitStack() as stack:
        stack.callback(trunk.register_forward_pre_hook(enter).remove)
        stack.callback(trunk.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        yield


def _share(name: str, module: nn.Module, without: nn.Module | None) -> Share:
    left_out = set() if without is None else {id(t) for _, t in _stored(without)}
    tensors = [t for _, t in _stored(module) if id(t) not in left_out]
    trained = [t for t in tensors if t.requires_grad]
    return Share(name, sum(t.numel() for t in tensors), sum(t.numel() for t in trained))


def _stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not name.endswith(_INPUT_STATISTICS):
            yield name, tensor


def _some(names: list[str]) -> str:
    return "0" if not names else f"{len(names)} ({', '.join(names[:3])})"


# the registry's public method takes the name of the function
AUDIT_REGISTRY._do_register("freeze", audit_trainer)
