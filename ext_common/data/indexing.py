"""Which annotation files are indexed instead of read into memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

from detectron2.config import CfgNode

from ext_common.data.index_store import DEFAULT_INDEX_ABOVE_MB


@dataclass(frozen=True)
class Indexing:
    """Options of the annotation index.

    Args:
        above_mb: files of more than this many 10^6 bytes are indexed; negative = none.
        folder: where indices are kept; empty = see ``index_store.open_index``.
    """

    above_mb: float = DEFAULT_INDEX_ABOVE_MB
    folder: str = ""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Indexing:
        """``cfg.DATASETS.INDEX_ABOVE_MB`` and ``INDEX_FOLDER``."""
        return cls(cfg.DATASETS.INDEX_ABOVE_MB, cfg.DATASETS.INDEX_FOLDER)

    def wanted_for(self, json_file: str) -> bool:
        """Whether this file is to be indexed; no for one that is not there."""
        if self.above_mb < 0:
            return False
        try:
            return os.path.getsize(json_file) > self.above_mb * 1e6
        except OSError:
            return False
