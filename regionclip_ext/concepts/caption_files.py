"""Captions of files of several kinds, one by one and without images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ext_common.data.json_stream import JsonStream
from ext_common.errors import DatasetError
from ext_common.images import printable

_START = 4096  # bytes that tell what a file is


def read_captions(path: str | Path) -> Iterator[str]:
    """The captions of a file.

    * ``.json``: COCO's captions file, read as a stream;
    * ``.tsv``: as CC3M gives it out, ``caption, URL``, or a text file of image-text pairs,
      ``key, caption`` (a text of JSON with ``captions`` counts too);
    * ``.tar``: an archive of pictures with their captions;
    * anything else: plain text, one caption per line.

    Empty captions are left out.

    Raises:
        DatasetError: no such file, one without captions, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError("no such file", where=printable(path), fix="check the path")
    readers = {".json": _coco, ".tsv": _tsv, ".tar": _tar}
    none = True
    for caption in readers.get(path.suffix.lower(), _plain)(path):
        if caption.strip():
            none = False
            yield caption.strip()
    if none:
        raise DatasetError("no captions", where=printable(path))


def _coco(path: Path) -> Iterator[str]:
    stream = JsonStream(path, ("annotations",))
    for place, element in enumerate(stream.elements()):
        entry = element.value
        caption = entry.get("caption") if isinstance(entry, dict) else None
        if not isinstance(caption, str):
            raise DatasetError(f"annotation {place} has no caption", where=printable(path))
        yield caption


def _tsv(path: Path) -> Iterator[str]:
    from regionclip_ext.data.caption_text import parse_captions

    for number, line in enumerate(_lines(path), start=1):
        first, _, second = line.partition("\t")
        # CC3M: the second column is where the image is
        text = first if second.startswith(("http://", "https://")) or not second else second
        if text.strip():
            yield from parse_captions(text, where=f"{printable(path)}, row {number}").texts


def _tar(path: Path) -> Iterator[str]:
    from regionclip_ext.data.tar_pairs import TarPairs

    yield from TarPairs(path).captions()


def _plain(path: Path) -> Iterator[str]:
    """Lines of text; what is none would be taken for captions without a word."""
    with path.open("rb") as stream:
        start = stream.read(_START)
    kind = ""
    if b"\0" in start:
        kind = "no text"
    elif start.lstrip().startswith(b"{") and b'":' in start:
        kind = "JSON objects"
    if kind:
        raise DatasetError(
            f"{kind}, not a caption a line",
            where=printable(path),
            fix="give COCO's .json, a .tsv of key and caption, a .tar of pairs, or a text file",
        )
    yield from _lines(path)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            yield line.rstrip("\r\n")
