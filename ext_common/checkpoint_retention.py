"""Which checkpoints of a run are kept: older ones go only when the newest is proven."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

from ext_common.checkpoint_files import matches_side_file, numbered_newest_first, side_file_of
from ext_common.errors import WeightsError

logger = logging.getLogger(__name__)


def remove_older(folder: Path, keep_last: int) -> list[Path]:
    """Delete all but the newest numbered checkpoints (``model_0000019.pth``) of a folder.

    The newest is read again first: its checksum, and the archive's own checksum of every tensor,
    which were computed from memory. If it does not pass, nothing is deleted. A file that cannot be
    deleted is named in the log.

    Args:
        folder: of the run; ``model_best.pth`` and ``model_final.pth`` stay.
        keep_last: how many to keep; 0 = all.

    Returns:
        Checkpoints that are gone.
    """
    numbered = numbered_newest_first(folder)
    if keep_last <= 0 or len(numbered) <= keep_last:
        return []
    try:
        prove(numbered[0])
    except WeightsError as error:
        logger.error("Older checkpoints are kept, for the new one is damaged: %s", error)
        return []
    removed = []
    for path in numbered[keep_last:]:
        try:
            path.unlink()
            side_file_of(path).unlink(missing_ok=True)
            removed.append(path)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error)
    return removed


def prove(path: Path) -> None:
    """Read a checkpoint back from the disk.

    Raises:
        WeightsError: it is not what was written.
    """
    try:
        if not matches_side_file(path, required=True):
            raise WeightsError("the content does not match its checksum", where=str(path))
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"cannot be read back: {error}", where=str(path)) from error
    if bad is not None:
        raise WeightsError(f"record {bad} does not match its checksum", where=str(path))
