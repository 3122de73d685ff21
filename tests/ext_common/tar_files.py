"""Tar archives for tests, written by Python's ``tarfile``."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int = 0, size: tuple[int, int] = (6, 8)) -> bytes:
    """A noise JPEG of (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_tar(
    path: Path, members: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT, mtime: int = 0
) -> Path:
    """An archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            add(archive, name, content, mtime)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes, mtime: int = 0) -> None:
    """Add one file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = mtime
    archive.addfile(info, io.BytesIO(content))


def images_tar(path: Path, count: int, *, first: int = 0, gzipped: tuple[int, ...] = ()) -> Path:
    """``count`` JPEGs, some of them gzip-compressed."""
    members = {}
    for number in range(count):
        content = jpeg(first + number, (6 + number, 8))
        name = f"{path.stem}_{number}.JPEG"
        members[name] = gzip.compress(content) if number in gzipped else content
    return write_tar(path, members)
