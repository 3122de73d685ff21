"""Single precision inside a mixed-precision step, where half would spoil the result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the device of ``like``; tensors are not converted.

    Devices that have no autocast (meta) are left as they are.
    """
    device_type = like.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
