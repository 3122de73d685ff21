"""A batch of two small pictures with captions, and the losses of a tiny pretraining model on it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from regionclip_ext.modeling.clip_tokens import tokenize
from regionclip_ext.modeling.regions.source import as_regions


def batch_of_two(*, proposals: bool = False) -> list[dict[str, Any]]:
    """Samples as the loader of pairs gives them, the same in every call."""
    generator = torch.Generator().manual_seed(2)
    sizes = [(48, 64), (64, 56)]
    items: list[dict[str, Any]] = []
    for number, (size, text) in enumerate(zip(sizes, ["a dog", "two red buses"], strict=True)):
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        items.append({"image": image, "tokens": tokenize([text])[0], "image_id": f"key{number}"})
        if proposals:
            corner = torch.rand(8, 2, generator=generator) * 30
            items[-1]["proposals"] = as_regions(torch.cat([corner, corner + 16], 1), size)
    return items


def build_pretraining(cfg: CfgNode) -> Any:
    """The model with the same random weights in every call."""
    torch.manual_seed(1)
    return build_model(cfg).train()


def step_losses(
    model: Any, batch: list[dict[str, Any]], storage: EventStorage | None = None
) -> dict[str, Tensor]:
    """Losses of a batch; the choice of regions is the same in every call."""
    torch.manual_seed(4)
    with storage if storage is not None else EventStorage(0):
        return model(batch)
