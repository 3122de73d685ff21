"""Pretraining of a backbone on single-object pictures, by ordinary classification.

    python -m benchmarks.claims.classification --config-file configs/claims/Frozen_FPN.yaml \
        --pictures pictures.npz --output trunk.safetensors --seed 0

The network is the configuration's ResNet as detectron2 builds it, so the weights have its names and
``MODEL.BACKBONE_FREEZE.WEIGHTS`` takes them. Pictures are flipped and made smaller at random, since
a detector shows its backbone objects of many sizes. The share of test pictures that it names
correctly is written beside the weights.

Shapes: B pictures of a batch, H and W rows and columns, K classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import frozen_backbone_ext  # noqa: F401 - first: its keys, and it repairs detectron2 0.6

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims.object_pictures import CLASS_NAMES, SIDE, ObjectPictures
from ext_common.atomic_file import writing
from ext_common.config import load_config
from ext_common.weights_io import save_tensors_atomic

SIDES = (40, 48, 56, SIDE)
BATCH = 64
PEAK_RATE = 0.004
WARMUP_SHARE = 0.15
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.1


class Classifier(nn.Module):
    """A ResNet, the mean of its last map, and one linear layer.

    Args:
        cfg: names the ResNet and the pixel statistics.
        classes: how many.
    """

    def __init__(self, cfg: CfgNode, classes: int) -> None:
        super().__init__()
        self.trunk: Any = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        for name, module in self.trunk.named_modules():
            if name.endswith("conv3.norm"):
                nn.init.zeros_(module.weight)  # blocks begin as identities: learns sooner
        shape = self.trunk.output_shape()["res5"]
        self.linear = nn.Linear(shape.channels, classes)
        for name, values in (("mean", cfg.MODEL.PIXEL_MEAN), ("std", cfg.MODEL.PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits [B, K] of pictures RGB 0..255."""
        maps = self.trunk((pixels_B3HW - self.mean) / self.std)
        logits_BK: Tensor = self.linear(maps["res5"].mean((2, 3)))
        return logits_BK


def train(model: Classifier, pictures: ObjectPictures, steps: int, seed: int) -> None:
    """Train with AdamW and one cycle of the learning rate.

    Args:
        model: changed in place.
        pictures: its training part is used.
        steps: batches of :data:`BATCH` pictures.
        seed: of the batches.
    """
    device = model.linear.weight.device
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps + 1, pct_start=WARMUP_SHARE
    )
    pixels_NHW3, labels_N = (
        torch.from_numpy(pictures.train_NHW3),
        torch.from_numpy(pictures.train_N),
    )
    model.train()
    for step in range(steps):
        chosen_B = torch.randint(len(labels_N), (BATCH,), generator=random)
        side = SIDES[int(torch.randint(len(SIDES), (), generator=random))]
        batch_B3HW = as_batch(pixels_NHW3[chosen_B], device)
        if torch.rand((), generator=random) < 0.5:
            batch_B3HW = batch_B3HW.flip(3)
        if side != SIDE:
            batch_B3HW = F.interpolate(batch_B3HW, (side, side), mode="bilinear", antialias=True)
        loss = F.cross_entropy(
            model(batch_B3HW), labels_N[chosen_B].to(device), label_smoothing=LABEL_SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss):.3f}", flush=True)


@torch.no_grad()
def accuracy(model: Classifier, pictures: ObjectPictures) -> float:
    """Percent of the test pictures whose class is found."""
    device = model.linear.weight.device
    model.eval()
    pixels_NHW3, labels_N = torch.from_numpy(pictures.test_NHW3), torch.from_numpy(pictures.test_N)
    found = 0
    for part_BHW3, part_B in zip(pixels_NHW3.split(256), labels_N.split(256), strict=True):
        found += int((model(as_batch(part_BHW3, device)).argmax(1).cpu() == part_B).sum())
    return 100.0 * found / len(labels_N)


def as_batch(pixels_BHW3: Tensor, device: torch.device) -> Tensor:
    """Float pictures [B, 3, H, W], channels last in memory, which is faster on a CPU."""
    return pixels_BHW3.to(device).permute(0, 3, 1, 2).float()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML")
    parser.add_argument("--pictures", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=1000, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0."""
    args = build_parser().parse_args(words)
    started = time.monotonic()
    cfg = load_config(args.config_file, ["MODEL.RESNETS.OUT_FEATURES", "['res5']"])
    torch.manual_seed(args.seed)
    pictures = ObjectPictures.read(args.pictures)
    model = Classifier(cfg, len(CLASS_NAMES)).to(args.device, memory_format=torch.channels_last)
    train(model, pictures, args.steps, args.seed)
    result = {"classes": len(CLASS_NAMES), "accuracy": accuracy(model, pictures)}
    result |= {"steps": args.steps, "seconds": round(time.monotonic() - started, 1)}
    with writing(args.output.with_suffix(".json")) as file:
        file.write((json.dumps(result) + "\n").encode())
    save_tensors_atomic(model.trunk.state_dict(), args.output)
    print(f"accuracy {result['accuracy']:.1f} % in {result['seconds']} s: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
