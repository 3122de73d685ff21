"""A frozen trunk's maps on disk, for pictures that come again pixel by pixel (spec 8.1).

Useful for fixed views only: test sets, training without random scale, crop, flip or Copy-Paste.
Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ext_common.atomic_file import writing

logger = logging.getLogger(__name__)

Maps = dict[str, Tensor]


class FeatureCache:
    """Maps by the content of the picture and the network that computed them.

    Args:
        folder: made if it is missing; a file per picture.
        identity: of the network: hash of its weights and how it computes.

    Attributes:
        hits, misses: pictures found and computed so far.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder = Path(folder)
        self.identity = identity
        self.hits = 0
        self.misses = 0

    def __call__(self, images_NCHW: Tensor, compute: Callable[[Tensor], Maps]) -> Maps:
        """The maps of a batch; only unknown pictures are computed.

        Args:
            images_NCHW: normalised and padded, as the network reads them.
            compute: gives the maps of a batch.
        """
        paths = [self.path(image_CHW) for image_CHW in images_NCHW]
        found = [_read(path, images_NCHW) for path in paths]
        new = [place for place, maps in enumerate(found) if maps is None]
        self.hits += len(found) - len(new)
        self.misses += len(new)
        if new:
            computed = compute(images_NCHW[new])
            for number, place in enumerate(new):
                own = {name: map_NCHW[number].detach() for name, map_NCHW in computed.items()}
                found[place] = own
                _write(paths[place], own)
        complete = [maps for maps in found if maps is not None]
        return {name: torch.stack([maps[name] for maps in complete]) for name in complete[0]}

    def path(self, image_CHW: Tensor) -> Path:
        """Where the maps of a picture lie; its size and type are part of the name."""
        digest = hashlib.sha256(self.identity.encode())
        digest.update(f"{tuple(image_CHW.shape)} {image_CHW.dtype}".encode())
        digest.update(image_CHW.detach().float().cpu().contiguous().numpy().tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.pt"


def _read(path: Path, like: Tensor) -> Maps | None:
    if not path.is_file():
        return None
    try:
        maps: Maps = torch.load(path, map_location=like.device, weights_only=True)
    except Exception as error:  # a damaged file is only worth the time to compute it again
        logger.warning("%s cannot be read and is made anew: %s", path, error)
        return None
    return maps


def _write(path: Path, maps: Maps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        torch.save({name: map_CHW.cpu().contiguous() for name, map_CHW in maps.items()}, file)
