"""Online and target network, and the step that both SoCo models share (specification 3).

Shapes: N images, K boxes per image and view, M vectors per image of a box set (K, or K on each of P
levels), C their width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError, ExtError
from soco_ext.losses.pair_similarity import pair_loss
from soco_ext.modeling.momentum import freeze_as_copy, momentum_at, move_towards
from soco_ext.modeling.shared_norm import is_synchronised
from soco_ext.modeling.view_batch import BoxPair, BoxSet, ViewBatch, collate

TARGET_SUFFIX = "_k"


@dataclass(frozen=True)
class MomentumOptions:
    """How the target follows the online network (specification 3.4).

    Args:
        base: momentum of the first step, 0 to 1.
        steps: step at which it reaches 1.

    Raises:
        ConfigError: values that make no schedule.
    """

    base: float = 0.99
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.base <= 1.0:
            raise ConfigError(f"{self.base}", where="SOCO.MOMENTUM", fix="0 to 1")
        if self.steps < 1:
            raise ConfigError(f"{self.steps}", where="SOCO.MOMENTUM_STEPS", fix="1 or more")


@dataclass(frozen=True)
class Similarities:
    """What the last step compared, for the monitor of collapse.

    Args:
        vectors_RC: target vectors of all boxes of the first pair, of length 1.
        positives_NMM: inner products of online and target vectors.
        matrix_NMM: which of them are the same object.
    """

    vectors_RC: Tensor
    positives_NMM: Tensor
    matrix_NMM: Tensor


class ContrastiveModel(nn.Module):
    """Predicts the target network's vector of an object from the online vector of another view.

    The networks are attributes with the published names, the target's with ``_k`` appended, so that
    the state dict has the names of the released checkpoints.

    Args:
        parts: networks that exist twice: name -> online network.
        predictor: on top of the online network only.
        momentum: how the target follows.

    Attributes:
        ema_step: updates of the target so far; part of a checkpoint through the trainer's hook.
        last: what the last training step compared.
    """

    def __init__(
        self, *, parts: Mapping[str, nn.Module], predictor: nn.Module, momentum: MomentumOptions
    ) -> None:
        super().__init__()
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.predictor = predictor
        for name, part in parts.items():
            target = copy.deepcopy(part)
            freeze_as_copy(target, part)
            self.add_module(name + TARGET_SUFFIX, target)
        self.momentum = momentum
        self.ema_step = 0
        self.last: Similarities | None = None
        self._starts_step = True
        self._synchronised = any(is_synchronised(m) for m in self.modules())
        self._followed: tuple[list[Tensor], list[Tensor]] | None = None

    coarsest_stride: int = 32
    """Of the smallest map whose batch norm needs two values."""

    def embed(
        self, parts: Mapping[str, nn.Module], views: Sequence[Tensor], sets: Sequence[BoxSet]
    ) -> list[Tensor]:
        """Vectors [N, M, C] of every box set, as they leave the last part (not normalised)."""
        raise NotImplementedError

    def matrix(self, pair: BoxPair) -> Tensor:
        """Correspondence of the vectors of a pair's box sets, [N, M, M]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def online(self) -> dict[str, nn.Module]:
        """The online network, the predictor last."""
        return {
            **{name: getattr(self, name) for name in self.part_names},
            "predictor": self.predictor,
        }

    @property
    def target(self) -> dict[str, nn.Module]:
        """The target network under the names of the online one."""
        return {name: getattr(self, name + TARGET_SUFFIX) for name in self.part_names}

    def set_micro_batch(self, index: int, count: int) -> None:
        """Told by the trainer: the target moves with the first of a step's ``count`` batches only."""
        self._starts_step = index == 0

    def forward(self, batch: ViewBatch | Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The loss of every pair of views, -4 to 4 (specification 3.2).

        Args:
            batch: of the loader, or put together already.

        Raises:
            ExtError: the model is not in training, or the batch is too small for batch norm.
        """
        if not self.training:
            raise ExtError(
                "SoCo's pretraining has nothing to predict",
                where="DATASETS.TEST",
                fix="leave it empty; embed_boxes() gives vectors, docs/soco.md says how to transfer",
            )
        whole = batch if isinstance(batch, ViewBatch) else collate(batch, self.device)
        terms = self.directed_terms(whole)
        return {
            f"loss_{pair.first.view + 1}{pair.second.view + 1}": terms[2 * i] + terms[2 * i + 1]
            for i, pair in enumerate(whole.pairs)
        }

    def directed_terms(self, batch: ViewBatch) -> list[Tensor]:
        """Loss of every directed pair of views: 1 to 2, 2 to 1, 1 to 3, 3 to 1, and so on.

        The target network is updated on the way, between the online and the target pass.
        """
        if not self._synchronised:
            _check_statistics(batch, self.coarsest_stride)
        sets = batch.sets
        online = [normalised(q) for q in self.embed(self.online, batch.views, sets)]
        if self._starts_step:
            self.update_target()
        with torch.no_grad():
            target = [normalised(k) for k in self.embed(self.target, batch.views, sets)]
        # products in the dtype of the vectors, also under automatic mixed precision
        with torch.autocast(online[0].device.type, enabled=False):
            return self._compare(batch.pairs, online, target)

    def _compare(
        self, pairs: Sequence[BoxPair], online: Sequence[Tensor], target: Sequence[Tensor]
    ) -> list[Tensor]:
        terms = []
        count = len(pairs)
        for i, pair in enumerate(pairs):
            matrix = self.matrix(pair)
            terms.append(pair_loss(online[i], target[count + i], matrix))
            terms.append(pair_loss(online[count + i], target[i], matrix.transpose(1, 2)))
            if i == 0:
                self._remember(online[0], target[count], matrix)
        return terms

    def update_target(self) -> None:
        """One step of the target towards the online network; buffers stay its own."""
        if self._followed is None:
            pairs = [
                (follower, leader)
                for name, part in self.target.items()
                for follower, leader in zip(
                    part.parameters(), getattr(self, name).parameters(), strict=True
                )
            ]
            self._followed = [k for k, _ in pairs], [q for _, q in pairs]
        options = self.momentum
        move_towards(*self._followed, momentum_at(self.ema_step, options.steps, options.base))
        self.ema_step += 1

    def _remember(self, q_NMC: Tensor, k_NMC: Tensor, matrix_NMM: Tensor) -> None:
        q_NMC = q_NMC.detach()
        similarity_NMM = torch.bmm(q_NMC, k_NMC.transpose(1, 2))
        self.last = Similarities(k_NMC.flatten(0, 1), similarity_NMM, matrix_NMM)


def normalised(vectors_NMC: Tensor) -> Tensor:
    """Vectors of length 1, at least in float32."""
    if vectors_NMC.dtype in (torch.float16, torch.bfloat16):
        vectors_NMC = vectors_NMC.float()
    return F.normalize(vectors_NMC, dim=-1, eps=1e-12)


def _check_statistics(batch: ViewBatch, stride: int) -> None:
    """Batch norm needs two values per channel; torch's own message does not say where."""
    images = len(batch.views[0])
    boxes = images * min(box_set.boxes_NK5.shape[1] for box_set in batch.sets)
    coarsest = min((-(-v.shape[-2] // stride)) * (-(-v.shape[-1] // stride)) for v in batch.views)
    if boxes < 2 or images * coarsest < 2:
        raise ConfigError(
            f"batch norm needs two values, a batch of {images} with {boxes} boxes has one somewhere",
            where="SOLVER.IMS_PER_BATCH",
            fix="use two or more images per process (and SOLVER.ACCUMULATE for a larger batch)",
        )
