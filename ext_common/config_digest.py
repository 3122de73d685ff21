"""A configuration in short: a digest that two machines can compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from detectron2.config import CfgNode


def config_digest(cfg: CfgNode, leave_out: Sequence[str] = ()) -> str:
    """Digest of a whole configuration: its file, the files below it and ``--opts``.

    Left out is what differs between machines and decides no box: the path of the weights (they
    have a digest of their own), the folder of outputs and the device.

    Args:
        cfg: complete configuration; it is not changed.
        leave_out: patterns of further keys, by full name, whose values do not count.

    Returns:
        32 hexadecimal digits.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "", ""
    _clear(cfg, "", leave_out)
    return hashlib.blake2b(cfg.dump().encode(), digest_size=16).hexdigest()


def _clear(node: CfgNode, prefix: str, patterns: Sequence[str]) -> None:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            _clear(value, f"{prefix}{name}.", patterns)
        elif any(fnmatchcase(f"{prefix}{name}", pattern) for pattern in patterns):
            node[name] = ""
