"""Pictures of a folder as batches of a detector, and where their features belong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ext_common.images import find_images, read_image
from ext_common.resize import ResizeShortestEdge


def output_paths(folder: Path, output: Path, suffix: str) -> dict[Path, Path]:
    """Where the features of every picture go: its name with another ending.

    The original cuts names at their first dot, so that ``a.1.jpg`` and ``a.2.jpg`` are one file
    (pitfall 18). Here the name is cut at the last dot, and kept whole where two would be the same.

    Args:
        folder: of the pictures.
        output: of the features.
        suffix: ``.pth`` or ``.npz``.
    """
    pictures = find_images(folder)
    stems = [picture.stem for picture in pictures]
    return {
        picture: output / ((stem if stems.count(stem) == 1 else picture.name) + suffix)
        for picture, stem in zip(pictures, stems, strict=True)
    }


def picture_batches(
    pictures: Sequence[Path], cfg: CfgNode, batch_size: int
) -> Iterator[tuple[list[Path], list[dict[str, Any]]]]:
    """Pictures read, resized for testing and put together.

    Yields:
        Files, and detectron2's dicts: ``image`` uint8 [3, H, W], ``height`` and ``width`` of the file.

    Raises:
        ImageError: a picture that cannot be read.
    """
    resize = ResizeShortestEdge(
        [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
    )
    for start in range(0, len(pictures), batch_size):
        files = list(pictures[start : start + batch_size])
        items = []
        for file in files:
            image_HWC = read_image(file, format=cfg.INPUT.FORMAT, max_pixels=cfg.INPUT.MAX_PIXELS)
            augmented = T.AugInput(image_HWC)
            resize(augmented)
            pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
            items.append(
                {
                    "image": torch.from_numpy(pixels),
                    "height": image_HWC.shape[0],
                    "width": image_HWC.shape[1],
                    "file_name": str(file),
                }
            )
        yield files, items
