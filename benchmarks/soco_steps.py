"""SoCo's models, batches for them, and the step as the specification says it: one run per call.

Shapes: N images, K boxes per image and set, C width of a vector.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import soco_ext  # noqa: F401 - registers the models
from benchmarks.case import Results
from ext_common.config import load_config
from ext_common.modeling.build import build_model
from soco_ext.losses.pair_similarity import pair_loss
from soco_ext.modeling.contrast import ContrastiveModel
from soco_ext.modeling.pyramid_model import SPARSE
from soco_ext.modeling.region_pooling import map_rois, pool_regions
from soco_ext.modeling.view_batch import BoxPair, BoxSet, ViewBatch
from soco_ext.modeling.view_passes import GROUPED

CONFIG = Path(__file__).resolve().parent.parent / "configs/soco/SoCo_FPN_100ep.yaml"
SMALL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "8", "SOCO.BASE_WIDTH", "8"),
    *("SOCO.HEAD_DIM", "16", "SOCO.HIDDEN_DIM", "16", "SOCO.EMBEDDING_DIM", "8"),
)
"""Config pairs of a model that tests can run."""
HALF_WIDTH = (
    *("SOCO.BASE_WIDTH", "32", "MODEL.FPN.OUT_CHANNELS", "128", "SOCO.HEAD_DIM", "512"),
    *("SOCO.HIDDEN_DIM", "2048", "SOCO.EMBEDDING_DIM", "128"),
)
"""Config pairs of a model with a quarter of the work: all layers are half as wide as the paper's."""
_COMPARED = (
    "encoder.conv1.weight",
    "head.conv1.weight",
    "head.fc1.weight",
    "predictor.linear2.weight",
)


@dataclass(frozen=True)
class StepModel:
    """A model and its batch.

    Attributes:
        model: its target stands still (momentum 1), so that every call computes the same.
        batch: on the same device.
    """

    model: ContrastiveModel
    batch: ViewBatch

    def run(self) -> Results:
        """Forward, target update and backward."""
        self.model.zero_grad(set_to_none=True)
        terms = self.model.directed_terms(self.batch)
        return self._results(torch.stack(terms).sum())

    def run_plain(self) -> Results:
        """The same with a run of head, projector and predictor for every box set and level."""
        model, pairs = self.model, self.batch.pairs
        model.zero_grad(set_to_none=True)
        online = [F.normalize(v, dim=-1) for v in plain_embed(model.online, self.batch)]
        plain_update(model)
        with torch.no_grad():
            target = [F.normalize(v, dim=-1) for v in plain_embed(model.target, self.batch)]
        total = online[0].new_zeros(())
        for i, pair in enumerate(pairs):
            matrix = model.matrix(pair)
            total = total + pair_loss(online[i], target[len(pairs) + i], matrix)
            total = total + pair_loss(online[len(pairs) + i], target[i], matrix.transpose(1, 2))
        return self._results(total)

    def _results(self, loss: Tensor) -> Results:
        loss.backward()
        found = {"loss": loss.detach()}
        weights = dict(self.model.named_parameters())
        for name in _COMPARED:
            gradient = weights[name].grad
            if gradient is not None:
                found[name] = gradient.clone()
        return found


def plain_embed(parts: dict[str, nn.Module], batch: ViewBatch) -> list[Tensor]:
    """Vectors [N, P * K, C] of every box set: specification 3.1, one run for each level."""
    maps = [parts["neck"](parts["encoder"](view)) for view in batch.views]
    found = []
    for box_set in batch.sets:
        levels = []
        for map_NCHW in maps[box_set.view]:
            rois = map_rois(box_set.boxes_NK5, *map_NCHW.shape[-2:])
            vectors = parts["projector"](parts["head"](pool_regions(map_NCHW, rois)))
            if "predictor" in parts:
                vectors = parts["predictor"](vectors)
            levels.append(vectors.view(*box_set.boxes_NK5.shape[:2], -1))
        found.append(torch.cat(levels, dim=1))
    return found


@torch.no_grad()
def plain_update(model: ContrastiveModel) -> None:
    """The target's update, one new tensor per weight (specification 3.4)."""
    momentum = model.momentum.base
    for name, part in model.target.items():
        for k, q in zip(part.parameters(), getattr(model, name).parameters(), strict=True):
            k.data = k.data * momentum + q.data * (1.0 - momentum)


def build_step(
    device: torch.device,
    *,
    sizes: Sequence[int],
    images: int = 2,
    opts: Sequence[str] = (),
    norms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> StepModel:
    """A model of ``configs/soco/SoCo_FPN_100ep.yaml`` and a random batch.

    Args:
        device: where.
        sizes: side of every view, pixels.
        images: N.
        opts: more ``KEY VALUE`` pairs.
        norms: False = batch norms are left out; then ``sparse`` and ``dense`` are the same function.
        dtype: of weights and batch.
    """
    torch.manual_seed(0)
    words = ["MODEL.DEVICE", str(device), "SOCO.MOMENTUM", "1.0", *opts]
    model = build_model(load_config(CONFIG, words))
    assert isinstance(model, ContrastiveModel)
    for module in model.modules():  # residual branches start at zero, which no training has
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if not norms:
        _remove_norms(model)
    return StepModel(model.to(dtype).train(), _batch(device, sizes, images, dtype=dtype))


def sparse_twin(step: StepModel) -> StepModel:
    """The same weights and batch, every box on its own level only."""
    model: Any = copy.deepcopy(step.model)
    model.regions = replace(model.regions, level_use=SPARSE)
    return StepModel(model, step.batch)


def one_pass_twin(step: StepModel) -> StepModel:
    """The same with one run of the backbone for views 1 and 2."""
    model: Any = copy.deepcopy(step.model)
    model.view_passes = GROUPED
    return StepModel(model, step.batch)


def plain_twin(step: StepModel) -> StepModel:
    """The same in torch's own memory layout, for :meth:`StepModel.run_plain`."""
    model = copy.deepcopy(step.model)
    return StepModel(model.to(memory_format=torch.contiguous_format), step.batch)


def _remove_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            _remove_norms(child)


def _batch(
    device: torch.device, sizes: Sequence[int], images: int, *, dtype: torch.dtype, boxes: int = 4
) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)

    def box_set(view: int) -> BoxSet:
        corner = torch.rand(images, boxes, 2, generator=generator) * 0.4
        size = 0.3 + torch.rand(images, boxes, 2, generator=generator) * 0.29
        ids = torch.arange(1.0, boxes + 1).expand(images, boxes)[..., None]
        levels = torch.randint(0, 4, (images, boxes), generator=generator)
        boxes_NK5 = torch.cat([corner, corner + size, ids], dim=2)
        return BoxSet(view, boxes_NK5.to(device, dtype), levels)

    views = [torch.randn(images, 3, s, s, generator=generator).to(device, dtype) for s in sizes]
    pairs = [BoxPair(box_set(0), box_set(view)) for view in range(1, len(sizes))]
    return ViewBatch(views, pairs)
