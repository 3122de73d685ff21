"""Reading image files: one definition of what every kind of file turns into, and of bad files.

What :func:`read_image` makes of a file (always uint8, three channels, upright):

==========================  =====================================================================
file                        pixels
==========================  =====================================================================
RGB, palette, CMYK, YCbCr   converted to RGB; embedded colour profiles are not applied
grey, 1 bit                 repeated in the three channels
16 bits a channel           scaled to 8 (65535 becomes 255), never clipped
alpha or transparent index  composited on white (:data:`ALPHA_BACKGROUND`)
animated, several pages     the first frame, with a warning in the log
EXIF or XMP orientation     applied, as detectron2's reader does
32-bit integer or float     ImageError: such pixels have no defined range
over ``max_pixels``         ImageError, before anything is decoded
==========================  =====================================================================

Only the formats in :data:`READABLE_FORMATS` are tried, so that no decoder with side effects (EPS
starts Ghostscript) meets an unknown file. Pillow's module state is left as it is.

Shapes: H, W = rows and columns of the upright image.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from PIL import Image

from ext_common.errors import ConfigError, DatasetError, ImageError

logger = logging.getLogger(__name__)

DEFAULT_MAX_PIXELS = 178_956_970
"""Default of ``INPUT.MAX_PIXELS``: where Pillow's ``open`` refuses, about 13,400 x 13,400."""

ALPHA_BACKGROUND = (255, 255, 255)
"""RGB colour that shows through transparent pixels."""

# file name endings of the formats that are tried
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
}
READABLE_FORMATS = tuple(_SUFFIXES)
"""Pillow's names of the formats that are read; AVIF and JPEG2000 where Pillow was built so."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""File name endings (lower case) by which a tool finds the images of a folder."""

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREFIX_BYTES = 16  # by which Pillow's formats know their files
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Source = str | os.PathLike[str] | bytes
T = TypeVar("T")


def printable(name: str | os.PathLike[str]) -> str:
    """A file name for one line of a message: newlines, undecodable bytes and the like escaped."""
    text = os.fspath(name)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def read_image(
    source: Source,
    *,
    format: str = "BGR",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str = "",
) -> NDArray[np.uint8]:
    """Decode one image; see the table at the top of this module.

    Args:
        source: a file, or the content of one.
        format: channel order of the result, "BGR" or "RGB" (``cfg.INPUT.FORMAT``).
        max_pixels: images that declare more are refused undecoded (``cfg.INPUT.MAX_PIXELS``).
        name: what messages call the image; the path where empty.

    Returns:
        uint8 [H, W, 3], C-contiguous and writable.

    Raises:
        ImageError: missing, empty, truncated, not an image, too large, or pixels without a range.
        ConfigError: another ``format``.
    """
    if format not in ("BGR", "RGB"):
        raise ConfigError(f"unknown image format {format!r}", fix="INPUT.FORMAT is RGB or BGR")
    where = _where(source, name)
    with _opened(source, where) as (image, _), _decoding(where):
        _check_size(image, where, max_pixels)
        _warn_if_animated(image, where)
        # the whole file first: an orientation may stand behind the pixels (PNG), and Pillow
        # turns TIFF files by itself while it loads them
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        pixels = _to_rgb(image, where)
    if turn is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
    return np.array(pixels if format == "RGB" else pixels[:, :, ::-1], order="C")


def image_size(source: Source, *, name: str = "") -> tuple[int, int]:
    """(height, width) in pixels of the upright image, without decoding it.

    Raises:
        ImageError: missing, empty or not an image. A file that is cut off later than its header
            is not noticed.
    """
    where = _where(source, name)
    with _opened(source, where) as (image, stream), _decoding(where):
        width, height = image.size
        if image.format == "TIFF":  # Pillow declares the upright size of these
            return height, width
        header = image
        if image.format == "PNG":
            header = _identified(_png_without_pixels(stream))
        return (width, height) if _orientation(header) >= 5 else (height, width)


def _where(source: Source, name: str) -> str:
    if name:
        return printable(name)
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else printable(source)


@contextmanager
def _opened(source: Source, where: str) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """The image with its header read, and the open file that it reads from."""
    stream: BinaryIO
    if isinstance(source, bytes):
        stream = io.BytesIO(source)
    else:
        try:
            # opening a pipe would wait for a writer
            if not stat.S_ISREG(os.stat(source).st_mode):
                raise ImageError("not a file", where=where, fix="give the path of an image file")
            stream = open(source, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError as error:
            raise ImageError("no such file", where=where, fix="check the path") from error
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be opened: {_reason(error)}", where=where) from error
    with stream:
        if not stream.read(1):
            raise ImageError("the file is empty", where=where, fix="copy or download it again")
        with _decoding(where):
            image = _identified(stream)
        with image:
            yield image, stream


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Whatever a decoder says about bad bytes becomes an ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            _reason(error),
            where=where,
            fix="Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS; shrink the image",
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            "not an image in a known format",
            where=where,
            fix=f"readable: {', '.join(READABLE_FORMATS)}",
        ) from error
    except Exception as error:  # decoders raise nearly every kind on corrupt bytes
        raise ImageError(
            f"corrupt image: {_reason(error)}", where=where, fix="copy or download it again"
        ) from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(printable(text.replace("\n", " ")).split()) or type(error).__name__


def _identified(stream: BinaryIO) -> Image.Image:
    """The image with its header read; as Pillow's ``open``, without its own limit of pixels."""
    Image.init()
    stream.seek(0)
    prefix = stream.read(_PREFIX_BYTES)
    for name in READABLE_FORMATS:
        if name not in Image.OPEN:  # this Pillow was built without it
            continue
        make, accepts = Image.OPEN[name]
        # what Pillow takes as "another format after all"
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            found = accepts is None or accepts(prefix)
            if found and not isinstance(found, str):  # a text says that a decoder is missing
                stream.seek(0)
                return make(stream, "")
    raise Image.UnidentifiedImageError


def _check_size(image: Image.Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} pixels are more than the limit of {max_pixels}",
            where=where,
            fix="shrink the image or raise INPUT.MAX_PIXELS",
        )


def _warn_if_animated(image: Image.Image, where: str) -> None:
    if image.format == "MPO":  # an ordinary photo with a preview or depth map behind it
        return
    try:
        several = bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is corrupt; the first is what counts
        several = True
    if several:
        logger.warning("%s: animated or several pages; only the first is read", where)


def _orientation(image: Image.Image) -> int:
    """1..8, of EXIF, else XMP; 1 where there is none or it cannot be read."""
    try:
        # the base class's: the PNG plugin's decodes the whole image to look behind the pixels
        value = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable EXIF does not make a picture unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_without_pixels(stream: BinaryIO) -> BinaryIO:
    """A PNG file of all chunks but the pixels, so that what stands behind them comes early."""
    stream.seek(len(_PNG_SIGNATURE))
    kept = [_PNG_SIGNATURE]
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"fdAT"):
            stream.seek(length + 4, os.SEEK_CUR)
        else:
            kept.append(head + stream.read(length + 4))
    return io.BytesIO(b"".join(kept))


def _to_rgb(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Pixels of a loaded image in its stored orientation, uint8 [H, W, 3], RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _scale_16_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"pixels of mode {image.mode!r} (32 bits) have no defined range",
            where=where,
            fix="convert the file to 8 or 16 bits a channel",
        )
    if "transparency" not in image.info and image.mode[-1] not in "Aa":
        return np.asarray(image.convert("RGB"))
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*ALPHA_BACKGROUND, 255))
    return np.asarray(Image.alpha_composite(canvas, rgba).convert("RGB"))


def _scale_16_bits(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit grey in 8 bits, rounded to nearest."""
    grey_HW = np.asarray(image).astype(np.uint32)
    scaled_HW = ((grey_HW * 255 + 32767) // 65535).astype(np.uint8)
    rgb_HW3 = np.repeat(scaled_HW[:, :, None], 3, axis=2)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb_HW3[grey_HW == transparent] = ALPHA_BACKGROUND
    return rgb_HW3


@dataclass
class BadSamplePolicy:
    """What a corrupt or missing sample does: stop at once, or be skipped, counted and logged.

    A loader calls :meth:`attempt` for every sample. In mode "raise" the first bad one is an error.
    In mode "skip" a bad sample is named in the log and left out (never replaced by a made-up
    image), until the skipped ones are both more than ``grace`` and more than ``limit`` of all
    attempts: then DatasetError. The same file counts each time that it is tried.

    The counts live in shared memory with one row per loader worker: the main process sees the
    total where the workers are forked. A pickled copy (workers started by spawn, or another rank)
    goes on from the counts so far by itself, and the limit then holds for each copy.

    Args:
        mode: "raise" or "skip" (``cfg.INPUT.BAD_SAMPLE_POLICY``).
        limit: largest share of skipped samples, 0..1 (``cfg.INPUT.BAD_SAMPLE_LIMIT``).
        grace: this many are skipped whatever their share, so that one bad file among the first
            hundred does not stop a long training.

    Raises:
        ConfigError: another mode, or a limit or grace out of range.
    """

    mode: str = "raise"
    limit: float = 0.001
    grace: int = 10
    _counts_W2: torch.Tensor = field(init=False, repr=False, compare=False)  # attempts, skips

    _ROWS = 257  # the main process and up to 256 workers; more share rows, and may lose a count

    def __post_init__(self) -> None:
        if self.mode not in ("raise", "skip"):
            raise ConfigError(
                f"unknown policy {self.mode!r}",
                where="INPUT.BAD_SAMPLE_POLICY",
                fix="skip or raise",
            )
        if not 0 <= self.limit <= 1 or self.grace < 0:
            raise ConfigError(
                f"limit {self.limit} and grace {self.grace} are not a share and a count",
                where="INPUT.BAD_SAMPLE_LIMIT",
                fix="a share from 0 to 1, such as 0.001",
            )
        self._counts_W2 = torch.zeros(self._ROWS, 2, dtype=torch.int64).share_memory_()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> BadSamplePolicy:
        """The policy of ``cfg.INPUT.BAD_SAMPLE_POLICY`` and ``BAD_SAMPLE_LIMIT``."""
        return cls(cfg.INPUT.BAD_SAMPLE_POLICY, cfg.INPUT.BAD_SAMPLE_LIMIT)

    @property
    def attempts(self) -> int:
        """Samples tried so far, by all workers that share these counts."""
        return int(self._counts_W2[:, 0].sum())

    @property
    def skipped(self) -> int:
        """Samples skipped so far, by all workers that share these counts."""
        return int(self._counts_W2[:, 1].sum())

    def attempt(self, name: str | os.PathLike[str], load: Callable[[], T]) -> T | None:
        """Run ``load()`` for the sample ``name``.

        Returns:
            What ``load`` returns, or None where the sample was bad and is skipped.

        Raises:
            ImageError, DatasetError: of ``load``, in mode "raise".
            DatasetError: over the limit, in mode "skip". Other exceptions are no bad samples and
                pass through.
        """
        self._count(0)
        try:
            return load()
        except (ImageError, DatasetError) as error:
            if self.mode == "raise":
                raise
            self._skip(printable(name), error)
            return None

    def _skip(self, name: str, error: ImageError | DatasetError) -> None:
        self._count(1)
        skipped, attempts = self.skipped, self.attempts
        about = str(error) if name in str(error) else f"{name}: {error}"
        logger.warning("skipped bad sample %d of %d tried: %s", skipped, attempts, about)
        if skipped > max(self.grace, self.limit * attempts):
            raise DatasetError(
                f"{skipped} of {attempts} samples are bad, more than {self.limit:.3%}; "
                f"the last: {about}",
                fix="repair or remove the files named in the log, or raise INPUT.BAD_SAMPLE_LIMIT",
            ) from error

    def _count(self, column: int) -> None:
        worker = torch.utils.data.get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (self._ROWS - 1)
        self._counts_W2[row, column] += 1


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of a folder (not of its subfolders) that end like images, sorted by name."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
