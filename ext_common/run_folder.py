"""The folder of a run: can it be written, is there an earlier run in it, where do logs go."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ext_common.atomic_file import remove_leftovers, write_bytes
from ext_common.checkpoint_files import LAST_CHECKPOINT, checkpoints_newest_first, side_file_of
from ext_common.errors import ConfigError
from ext_common.packages import PACKAGES

AUTO_FOLDER = "auto"
"""Last part of an ``OUTPUT_DIR`` that stands for the name of the config file (Detic's habit)."""

METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
_RUN_FILES = (METRICS_FILE, "results.json", LAST_CHECKPOINT, CONFIG_FILE)
_RUN_PATTERNS = ("log.txt*", "events.out.tfevents.*", "inference_*", "crash")

logger = logging.getLogger(__name__)


def resolve_output_dir(cfg: CfgNode, config_file: str) -> None:
    """Replace a trailing ``auto`` in ``cfg.OUTPUT_DIR`` by the name of the config file."""
    folder = Path(cfg.OUTPUT_DIR)
    if folder.name == AUTO_FOLDER:
        cfg.OUTPUT_DIR = str(folder.with_name(Path(config_file).stem or "default"))


def open_run_folder(folder: str | Path, *, resume: bool, overwrite: bool, training: bool) -> None:
    """Make the folder of a run, or refuse it before anything is computed.

    Args:
        folder: ``OUTPUT_DIR``.
        resume: a run in it is to be continued.
        overwrite: a run in it is to be removed: its checkpoints, logs, metrics and results, not
            what else lies there.
        training: evaluation may write next to an existing run.

    Raises:
        ConfigError: not writable, or it holds a run and neither flag was given.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror or error}",
            where="OUTPUT_DIR",
            fix="choose another folder",
        ) from error
    if training:  # one run per folder: nobody else is writing here
        for path in remove_leftovers(folder):
            logger.info("Removed %s, which a killed process left", path)
    if not training or resume:
        return
    if overwrite:
        remove_run(folder)
    elif holds_run(folder):
        raise ConfigError(
            f"{folder} holds an earlier run",
            where="OUTPUT_DIR",
            fix="give --resume to continue it, --overwrite to start again, or another folder",
        )


def holds_run(folder: str | Path) -> bool:
    """Whether a training has written its checkpoints or metrics here."""
    return bool(checkpoints_newest_first(Path(folder))) or Path(folder, METRICS_FILE).exists()


def remove_run(folder: Path) -> None:
    """Delete what a run wrote into its folder, and nothing else."""
    checkpoints = checkpoints_newest_first(folder)
    named: Iterable[Path] = (folder / name for name in _RUN_FILES)
    found = [path for pattern in _RUN_PATTERNS for path in folder.glob(pattern)]
    for path in (*checkpoints, *map(side_file_of, checkpoints), *named, *found):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def start_logging(cfg: CfgNode, command: str) -> None:
    """Log to the terminal (main process) and to ``OUTPUT_DIR/log.txt`` (each process its own).

    Args:
        cfg: for ``OUTPUT_DIR`` and the device.
        command: how the run was started.
    """
    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "ext_common", *PACKAGES):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name, abbrev_name=name)
    if not comm.is_main_process():
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    logger.info(
        "%s; MODEL.DEVICE %s, Python %s, torch %s, NumPy %s, %s, %d process(es)",
        command,
        cfg.MODEL.DEVICE,
        platform.python_version(),
        torch.__version__,
        np.__version__,
        device,
        comm.get_world_size(),
    )


def write_config(cfg: CfgNode) -> None:
    """Write ``OUTPUT_DIR/config.yaml``, from the main process; once the run may go on with it."""
    if not comm.is_main_process():
        return
    path = Path(cfg.OUTPUT_DIR) / CONFIG_FILE
    write_bytes(path, cfg.dump().encode())
    logger.info("The complete configuration is in %s", path)
