"""Tensors in files that are named by what they were computed from."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from ext_common.atomic_file import writing

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class TensorFolder:
    """A folder of such files.

    Args:
        folder: made if it is missing.
        identity: of the network and of how it computes; another one never finds these files.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder = Path(folder)
        self.identity = identity

    def path(self, *inputs: Tensor) -> Path:
        """Where the results for some inputs lie; values, shapes and types make the name."""
        digest = hashlib.sha256(self.identity.encode())
        for tensor in inputs:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            plain = tensor.detach().cpu().contiguous()
            if plain.dtype == torch.bfloat16:  # NumPy does not have it
                plain = plain.view(torch.int16)
            digest.update(plain.numpy().tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.pt"

    def read(self, path: Path, device: torch.device) -> Tensors | None:
        """What is there; None where nothing is, or a damaged file."""
        if not path.is_file():
            return None
        try:
            found: Tensors = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file is only worth the time to compute it again
            logger.warning("%s cannot be read and is made anew: %s", path, error)
            return None
        return found

    def write(self, path: Path, tensors: Tensors) -> None:
        """Write atomically, so that several processes may fill one folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with writing(path) as file:
            torch.save(stored, file)
