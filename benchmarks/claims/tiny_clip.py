"""Train a CLIP of a million parameters on captioned pictures, both towers, from nothing.

    python -m benchmarks.claims.tiny_clip --captions captions.json --images FOLDER --test labels.json \\
        --test-images FOLDER --output clip-seed0

Writes open_clip's ``open_clip_config.json`` (for ``MODEL.TEXT_ENCODER.NAME local-dir:FOLDER``), the
weights ``clip.pt`` with OpenAI's names, and ``accuracy.json``: the share of single-object pictures
whose class is named correctly, zero-shot. One process of a few minutes; a stopped one starts again.

Legend: N pictures, S their side in pixels, L tokens, D width of the joint embedding, C classes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from benchmarks.claims.captions import PROMPT, contents
from benchmarks.claims.tiny_clip_data import Pairs, load_pictures
from ext_common.atomic_file import writing
from ext_common.data.json_files import write_json_atomic
from regionclip_ext.losses.image_text import image_text_loss
from regionclip_ext.modeling.clip_tokens import tokenize

SIDE, CONTEXT = 96, 32
# the sizes of configs/claims/RegionCLIP_*.yaml
MODEL: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 2, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "width": 64, "heads": 2, "layers": 2},
    "quick_gelu": True,
}
WEIGHTS, CONFIG, ACCURACY = "clip.pt", "open_clip_config.json", "accuracy.json"
SMALLEST_SCALE = 0.01  # temperature that CLIP's own does not fall below
LOG_PERIOD = 50


def build_clip(config: Mapping[str, Any] = MODEL) -> Any:
    """An untrained model of open_clip's."""
    return open_clip.CLIP(**json.loads(json.dumps(dict(config))))


def build_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW as CLIP's: no decay of gains, biases and the temperature."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up times half a cosine to 0."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: Any, pairs: Pairs, args: argparse.Namespace) -> None:
    """Contrast pictures with captions; the temperature is trained too, the image tower in bfloat16."""
    optimizer = build_optimizer(model, args.rate)
    device = model.logit_scale.device
    model.visual.to(memory_format=torch.channels_last)
    model.train()
    for step, (images_NCSS, tokens_NL) in enumerate(pairs.batches(args.batch, args.steps)):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate_factor(step, args.steps)
        images_NCSS = images_NCSS.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            images_ND = model.visual(images_NCSS)
        texts_ND = model.encode_text(tokens_NL.to(device))
        # the loss divides by the temperature; here it is trained and multiplies
        scale = model.logit_scale.exp()
        loss = image_text_loss(images_ND.float(), texts_ND, 1.0 / scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, -math.log(SMALLEST_SCALE))
        if (step + 1) % LOG_PERIOD == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, scale {scale.item():.1f}", flush=True)


@torch.no_grad()
def accuracy(
    model: Any, images_NCSS: Tensor, nouns: Sequence[str], classes: Sequence[str]
) -> float:
    """Percent of single-object pictures whose noun is nearest among the classes."""
    model.eval()
    device = model.logit_scale.device
    tokens_CL = tokenize([PROMPT.format(name) for name in classes], context=CONTEXT)
    texts_CD = model.encode_text(tokens_CL.to(device), normalize=True)
    images_ND = torch.cat([model.visual(part.to(device)) for part in images_NCSS.split(64)])
    found_N = (images_ND @ texts_CD.t()).argmax(dim=1).tolist()
    right = [classes[number] == name for number, name in zip(found_N, nouns, strict=True)]
    return 100.0 * sum(right) / len(right)


def save(model: nn.Module, folder: Path) -> None:
    """Configuration, then weights: OpenAI's names, contiguous, on the CPU."""
    write_json_atomic(folder / CONFIG, {"model_cfg": dict(MODEL)})
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with writing(folder / WEIGHTS) as file:
        torch.save(state, file)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, required=True, help="COCO's layout")
    parser.add_argument("--images", type=Path, required=True, help="folder of its pictures")
    parser.add_argument("--test", type=Path, required=True, help="label pictures of the demo")
    parser.add_argument("--test-images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(words)
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    pairs = Pairs.read(args.captions, args.images, SIDE, CONTEXT, random.Random(args.seed))
    model = build_clip().to(args.device)
    train(model, pairs, args)
    tested = contents(args.test)
    pictures_NCSS = load_pictures([args.test_images / name for name, _ in tested], SIDE)
    nouns = [named[0] for _, named in tested]
    percent = accuracy(model, pairs.normalized(pictures_NCSS), nouns, sorted(set(nouns)))
    print(f"single-object pictures: {percent:.1f} % of {len(nouns)}, chance {100 / 12:.1f} %")
    save(model, args.output)
    write_json_atomic(args.output / ACCURACY, {"single_objects": percent, "pictures": len(nouns)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
