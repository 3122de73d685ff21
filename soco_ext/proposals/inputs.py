"""What proposals are made from, in short: digests that two machines can compare."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ext_common.data.unlabelled_images import ImageList
from ext_common.file_digest import sha256_of
from ext_common.tar_shards import TarDataset

_END = 1 << 20  # bytes of each end of a file of weights


def content_digest(*paths: str | Path) -> str:
    """Digest of the bytes of files; one that is not there counts as missing, not as empty."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        if Path(path).is_file():
            digest.update(bytes.fromhex(sha256_of(path)))
        digest.update(b"|")
    return digest.hexdigest()


def weights_digest(path: str | Path) -> str:
    """Digest of the size and of the first and last MiB of a file that may have gigabytes."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).expanduser().open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(f"{size}|".encode() + stream.read(_END))
        stream.seek(max(size - _END, 0))
        digest.update(stream.read(_END))
    return digest.hexdigest()


def place_of_images(images: ImageList, tars: TarDataset | None) -> str:
    """Where images lie on this machine: their folder, or which archives."""
    if tars is None:
        return os.path.realpath(images.root or "")
    paths = [os.path.realpath(tar) for tar in tars.tars]
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    return f"{len(paths)} archives from {paths[0]} on, digest {digest.hexdigest()}"
