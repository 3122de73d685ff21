"""Parts of a run's state that no library object carries: random generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """This process' random generators: Python, NumPy's global one, torch on CPU and its GPU."""

    def state_dict(self) -> dict[str, Any]:
        """All states as tensors and plain values."""
        version, words, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        state: dict[str, Any] = {
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
            "numpy": [
                str(kind),
                torch.from_numpy(np.asarray(keys).astype(np.int64)),
                int(position),
                int(has_gauss),
                float(cached),
            ],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the numbers that would have come next."""
        version, words, gauss = state_dict["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        kind, keys, position, has_gauss, cached = state_dict["numpy"]
        np.random.set_state(  # noqa: NPY002
            (kind, keys.numpy().astype(np.uint32), position, has_gauss, cached)
        )
        torch.set_rng_state(state_dict["torch"])
        if "cuda" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda"])
