"""A frozen trunk's maps on disk, for pictures that come again pixel by pixel (spec 8.1).

Useful for fixed views only: test sets, training without random scale, crop, flip or Copy-Paste.
Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from frozen_backbone_ext.modeling.tensor_folder import TensorFolder, Tensors


class FeatureCache(TensorFolder):
    """Maps by the content of the picture and the network that computed them.

    Args:
        folder: made if it is missing; a file per picture.
        identity: of the network: hash of its weights and how it computes.

    Attributes:
        hits, misses: pictures found and computed so far.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        super().__init__(folder, identity)
        self.hits = 0
        self.misses = 0

    def __call__(self, images_NCHW: Tensor, compute: Callable[[Tensor], Tensors]) -> Tensors:
        """The maps of a batch; only unknown pictures are computed.

        Args:
            images_NCHW: normalised and padded, as the network reads them.
            compute: gives the maps of a batch.
        """
        paths = [self.path(image_CHW) for image_CHW in images_NCHW]
        found = [self.read(path, images_NCHW.device) for path in paths]
        new = [place for place, maps in enumerate(found) if maps is None]
        self.hits += len(found) - len(new)
        self.misses += len(new)
        if new:
            computed = compute(images_NCHW[new])
            for number, place in enumerate(new):
                own = {name: map_NCHW[number].detach() for name, map_NCHW in computed.items()}
                found[place] = own
                self.write(paths[place], own)
        complete = [maps for maps in found if maps is not None]
        return {name: torch.stack([maps[name] for maps in complete]) for name in complete[0]}
