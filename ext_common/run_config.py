"""The configuration that a checkpoint was made with, and what of it may differ on a resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml
from detectron2.config import CfgNode

from ext_common.errors import ConfigError

FREE_KEYS = (
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "FIND_UNUSED_PARAM",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "DATASETS.*_TEST",
    "DATASETS.REGISTRY",
    "DATASETS.INDEX_*",
    "INPUT.*TEST*",
    "INPUT.BAD_SAMPLE_*",
    "INPUT.MAX_PIXELS",
    "INPUT.TRUST_FILES",
    "MODEL.*.CACHE_FOLDER",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.*_TEST",
    "MODEL.RESET_CLS_TESTS",
    "MODEL.TEST_*",
    "MODEL.TEXT_ENCODER.WEIGHTS",
    "MODEL.TEXT_ENCODER.CACHE_DIR",
    "MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD",
    "SOLVER.CHECKPOINT_*",
    "SOLVER.CHECK_GRADIENTS",
    "SOLVER.NONFINITE_SKIP",
    "SOLVER.RESET_ITER",
    "SOLVER.TRAIN_ITER",
    "*.MONITOR.PERIOD",
    "TEST.[!P]*",  # all but PRECISE_BN, which changes the model
)
"""Patterns of keys that a resumed run may change: they do not change what the checkpoint means."""

_MOST_NAMED = 6
# with this schedule the learning rate of an iteration does not depend on how many follow it
_OPEN_ENDED = "WarmupMultiStepLR"

logger = logging.getLogger(__name__)


class RunConfig:
    """A part of a checkpoint that refuses to be restored into another kind of run.

    Args:
        cfg: complete configuration of this process.

    Attributes:
        allowed: patterns of further keys that may differ (``--allow-change``).
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._text: str = cfg.dump()
        self._reset = bool(cfg.SOLVER.RESET_ITER)
        self.allowed: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """The configuration as YAML text."""
        return {"yaml": self._text}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Compare; nothing is taken over.

        Keys that only one of the two has belong to another version of the program and pass.

        Raises:
            ConfigError: keys differ that neither FREE_KEYS nor :attr:`allowed` names. With
                ``SOLVER.RESET_ITER``, which starts a new schedule, only the model counts.
        """
        changes = changed_keys(yaml.safe_load(state_dict["yaml"]), yaml.safe_load(self._text))
        refused = {key: values for key, values in changes.items() if not self._may_differ(key)}
        for key, (before, now) in changes.items():
            if key not in refused:
                logger.info("Differs from the interrupted run: %s was %r, is %r", key, before, now)
        if refused:
            raise ConfigError(
                f"the run was started with another configuration: {_listed(refused)}",
                where="--resume",
                fix="restore these values, start anew with --overwrite or another OUTPUT_DIR, or "
                "name what is meant to differ with --allow-change PATTERN; workers, periods, "
                "output and evaluation may differ freely",
            )

    def _may_differ(self, key: str) -> bool:
        if self._reset and not key.startswith("MODEL."):
            return True
        return any(fnmatchcase(key, pattern) for pattern in (*FREE_KEYS, *self.allowed))


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys with another value, by full name: (before, now).

    ``SOLVER.MAX_ITER`` is none of them where a schedule without an end is only made longer.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changes = {
        key: (old[key], new[key]) for key in old if key in new and not _equal(old[key], new[key])
    }
    name = "SOLVER.LR_SCHEDULER_NAME"
    if old.get(name) == new.get(name) == _OPEN_ENDED:
        changes.pop("SOLVER.MAX_ITER", None)
    return changes


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _equal(before: Any, now: Any) -> bool:
    # YAML knows no tuples; 1 and True are equal in Python
    return bool(before == now) and isinstance(before, bool) == isinstance(now, bool)


def _listed(changes: Mapping[str, Sequence[Any]]) -> str:
    named = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items()]
    more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return "; ".join(named[:_MOST_NAMED]) + more
