"""Captioned pictures in memory, for the tiny CLIP.

Legend: N pictures, C channels (3, RGB), S side in pixels, L tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ext_common.data.json_files import read_json
from ext_common.images import read_image
from regionclip_ext.modeling.clip_tokens import tokenize
from regionclip_ext.modeling.pixels import PixelFormat, normalize_images

MARGIN = 8
"""Pixels that a picture is larger than its crops."""

# CLIP's
_PIXELS = PixelFormat(
    "RGB", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)


def load_pictures(paths: Sequence[Path], side: int) -> Tensor:
    """uint8 [N, 3, S, S]: the middle square of every picture, resized."""
    pictures = [_square(read_image(path, format="RGB"), side) for path in paths]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _square(image_HWC: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = np.ascontiguousarray(image_HWC[top : top + short, left : left + short])
    return np.asarray(cv2.resize(middle, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True)
class Pairs:
    """Pictures and their captions.

    Attributes:
        pictures_NCSS: uint8, MARGIN larger than what a step sees.
        captions: of each picture, at least one.
        side: of the crops.
        context: L.
        rng: of captions and crops; torch's own decides about order and flips.
    """

    pictures_NCSS: Tensor
    captions: tuple[tuple[str, ...], ...]
    side: int
    context: int
    rng: random.Random

    @classmethod
    def read(
        cls, captions: Path, images: Path, side: int, context: int, rng: random.Random
    ) -> Pairs:
        """The pictures of a captions file in COCO's layout."""
        file = read_json(captions)
        texts: dict[int, list[str]] = defaultdict(list)
        for entry in file["annotations"]:
            texts[entry["image_id"]].append(entry["caption"])
        found = [image for image in file["images"] if image["id"] in texts]
        paths = [images / image["file_name"] for image in found]
        return cls(
            pictures_NCSS=load_pictures(paths, side + MARGIN),
            captions=tuple(tuple(texts[image["id"]]) for image in found),
            side=side,
            context=context,
            rng=rng,
        )

    def batches(self, size: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised crops [N, 3, S, S], half of them flipped, and tokens [N, L] of a caption each.

        Pictures come in a new order each time round.
        """
        order: list[int] = []
        for _ in range(count):
            while len(order) < size:
                order += torch.randperm(len(self.captions)).tolist()
            chosen, order = order[:size], order[size:]
            top, left = self.rng.randrange(MARGIN + 1), self.rng.randrange(MARGIN + 1)
            crops_NCSS = self.pictures_NCSS[
                chosen, :, top : top + self.side, left : left + self.side
            ]
            flipped_N = torch.rand(size) < 0.5
            crops_NCSS = torch.where(flipped_N[:, None, None, None], crops_NCSS.flip(3), crops_NCSS)
            texts = [self.rng.choice(self.captions[number]) for number in chosen]
            tokens_NL = tokenize(texts, context=self.context, keep_end=True)
            yield self.normalized(crops_NCSS), tokens_NL

    def normalized(self, pictures_NCSS: Tensor) -> Tensor:
        """As CLIP's image tower takes them, float32."""
        side = (pictures_NCSS.shape[2], pictures_NCSS.shape[3])
        sizes = [side] * len(pictures_NCSS)
        return normalize_images(pictures_NCSS, sizes, _PIXELS, channels="RGB").tensor
