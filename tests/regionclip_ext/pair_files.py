"""Small image-text files on disk."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "grey")
_RGB = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (90, 90, 90)}


def picture(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG (width, height) with a bright square on one of four colours."""
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = _RGB[COLOURS[number % 4]]
    left = 4 * (number % 5)
    pixels[8:24, left : left + 20] = (240, 240, 120)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def caption(number: int) -> str:
    return f"a yellow square on a {COLOURS[number % 4]} wall"


def write_tsv(folder: Path, count: int = 6, *, stem: str = "train", index: bool = False) -> Path:
    """Image and text file; returns the image file."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [f"key{n}\t{base64.b64encode(picture(n)).decode()}\n" for n in range(count)]
    texts = [f"key{n}\t{json.dumps({'captions': [caption(n), 'a wall']})}\n" for n in range(count)]
    image_file = folder / f"{stem}.images.tsv"
    for file, rows in ((image_file, images), (folder / f"{stem}.text.tsv", texts)):
        file.write_text("".join(rows))
        if index:
            write_index(file, [len(row.encode()) for row in rows])
    return image_file


def write_index(file: Path, lengths: Sequence[int]) -> None:
    offsets = [sum(lengths[:n]) for n in range(len(lengths))]
    file.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def write_coco(folder: Path, count: int = 4) -> Path:
    """COCO's tree; returns the captions file. The last image has no caption."""
    images = folder / "tiny2017"
    images.mkdir(parents=True)
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for n in range(count):
        (images / f"{n:012d}.png").write_bytes(picture(n))
        content["images"].append({"id": n, "file_name": f"{n:012d}.png"})
    for n in range(count - 1):
        for text in (caption(n), "a wall "):
            entry = {"id": len(content["annotations"]), "image_id": n, "caption": text}
            content["annotations"].append(entry)
    file = folder / "annotations" / "captions_tiny2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    return file


def write_tar(
    path: Path, *, json_texts: bool = False, lonely: bool = False, count: int = 3
) -> Path:
    """An archive of pairs; ``lonely`` leaves the last image without a caption."""
    with tarfile.open(path, "w") as archive:
        for n in range(count):
            members = {f"{n:04d}.png": picture(n)}
            text = json.dumps({"caption": caption(n)}) if json_texts else caption(n) + "\n"
            if not (lonely and n == count - 1):
                members[f"{n:04d}.{'json' if json_texts else 'txt'}"] = text.encode()
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
