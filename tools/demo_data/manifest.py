"""Says whether a folder holds a complete dataset, made with the same settings by the same code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError

MANIFEST_NAME = "manifest.json"
# what a dataset consists of; other files in its folder are left alone
PARTS = (
    "images",
    "labels",
    "base_train.json",
    "oracle_train.json",
    "image_labels.json",
    "val.json",
    "datasets.yaml",
    "preview.png",
)


@dataclass(frozen=True)
class Settings:
    """What a dataset is made from.

    Attributes:
        seed: of all randomness, 0 or more.
        train: pictures in each of ``base_train.json`` and ``oracle_train.json``.
        labels: pictures in ``image_labels.json``, spread evenly over all classes.
        val: pictures in ``val.json``.
        size: side of the scenes and longer side of the label pictures, in pixels.
        paintings: how many painted pictures backgrounds are cropped from; 0 = from photographs.
    """

    seed: int = 0
    train: int = 600
    labels: int = 600
    val: int = 150
    size: int = 160
    paintings: int = 0

    def __post_init__(self) -> None:
        lowest = {"seed": 0, "train": 1, "labels": 1, "val": 1, "size": 96, "paintings": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise DatasetError(
                    f"{name} is {getattr(self, name)}",
                    where="demo dataset",
                    fix=f"give {low} or more",
                )
        if self.size > 256:
            raise DatasetError(
                f"size is {self.size}", where="demo dataset", fix="give 256 pixels or fewer"
            )


def write_manifest(folder: Path, settings: Settings) -> None:
    """Write ``manifest.json`` for a finished folder."""
    files = _files(folder)
    content = {
        "settings": asdict(settings),
        "code": _code_checksum(),
        "files": len(files),
        "checksum": _checksum(folder, files),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_complete(folder: Path, settings: Settings) -> bool:
    """Whether the folder holds exactly the files that these settings and this code make."""
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if content.get("settings") != asdict(settings) or content.get("code") != _code_checksum():
        return False
    return content.get("checksum") == _checksum(folder, _files(folder))


def _files(folder: Path) -> list[Path]:
    """All files of the dataset as sorted relative paths, the manifest not among them."""
    files = [folder / part for part in PARTS if (folder / part).is_file()]
    for part in PARTS:
        files += (path for path in (folder / part).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder) for path in files)


def _checksum(folder: Path, files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(path.as_posix().encode() + b"\0")
        total.update(hashlib.sha256((folder / path).read_bytes()).digest())
    return total.hexdigest()


def _code_checksum() -> str:
    """Changes with every edit of this folder's files: an old dataset is then made anew."""
    here = Path(__file__).parent
    sources = sorted(path.relative_to(here) for path in here.glob("*.py"))
    return _checksum(here, sources)
