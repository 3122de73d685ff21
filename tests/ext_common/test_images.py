"""read_image against Pillow, detectron2's reader and a table of conversions; BadSamplePolicy."""

from __future__ import annotations

import io
import logging
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from ext_common.config import get_config
from ext_common.errors import ConfigError, DatasetError, ImageError
from ext_common.images import (
    BadSamplePolicy,
    find_images,
    image_size,
    printable,
    read_image,
)

ORIENTATION = 274


def picture(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    """Random uint8 [height, width, 3], every pixel different, so that any turn shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, orientation: int | None = None, **options: Any) -> Path:
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("format", ["BGR", "RGB"])
def test_agrees_with_detectron2(
    tmp_path: Path, suffix: str, orientation: int | None, format: str
) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(picture(24, 40)), orientation)
    expected = detection_utils.read_image(str(path), format)

    for source in (path, str(path), path.read_bytes()):
        image = read_image(source, format=format)
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        assert image.flags["WRITEABLE"]
        assert image_size(source) == expected.shape[:2]


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    orientation=st.integers(1, 8),
    kind=st.sampled_from(["PNG", "TIFF", "WEBP"]),
)
def test_orientation_moves_every_pixel_to_its_place(
    height: int, width: int, orientation: int, kind: str
) -> None:
    rgb = picture(height, width)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(rgb).save(stream, kind, exif=exif, **options)

    # EXIF 2.3, tag 274: which edge of the scene the stored row 0 and column 0 show
    upright = rgb.transpose(1, 0, 2) if orientation >= 5 else rgb
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    upright = upright[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    np.testing.assert_array_equal(read_image(stream.getvalue(), format="RGB"), upright)
    assert image_size(stream.getvalue()) == upright.shape[:2]


def test_png_orientation_behind_the_pixels() -> None:
    """exiftool and others append it; the size is told without decoding all the same."""
    stream = io.BytesIO()
    Image.fromarray(picture(4, 7)).save(stream, "PNG")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    end = png_chunk(b"IEND", b"")
    plain = stream.getvalue()
    assert plain.endswith(end)
    content = plain[: -len(end)] + png_chunk(b"eXIf", exif.tobytes()[6:]) + end

    assert read_image(content).shape == (7, 4, 3)
    assert image_size(content) == (7, 4)


def test_size_is_told_without_the_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(picture(300, 200)), 6)
    cut = path.read_bytes()[:2000]
    assert image_size(cut) == (200, 300)
    with pytest.raises(ImageError, match="corrupt"):
        read_image(cut)


def grey16(values: list[int]) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=np.uint16))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    grey16([0, 128, 257, 32768, 40000, 65535]).save(path)
    expected = [round(v * 255 / 65535) for v in (0, 128, 257, 32768, 40000, 65535)]
    image = read_image(path)
    assert image[0, :, 0].tolist() == expected
    assert (image == image[:, :, :1]).all()


def test_16_bit_colour_is_scaled_not_clipped() -> None:
    rows = b"".join(
        b"\0" + struct.pack(">3H", *value) for value in [(0, 300, 65535), (32768, 1, 40000)]
    )
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0)
    )
    content += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    image = read_image(content, format="RGB").astype(int)
    expected = np.array([[[0, 300, 65535]], [[32768, 1, 40000]]]) / 257
    assert np.abs(image - expected).max() < 1


def test_16_bit_grey_transparency(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    grey16([0, 1000, 2000]).save(path, transparency=1000)
    assert read_image(path)[0, :, 0].tolist() == [0, 255, 8]


@pytest.mark.parametrize("mode", ["P", "L", "1", "CMYK", "YCbCr"])
def test_modes_without_transparency_match_pillow(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(picture(16, 24)).convert(mode)
    path = save(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"), image)
    np.testing.assert_array_equal(read_image(path, format="RGB"), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    colour = (200, 60, 20)
    path = tmp_path / "print.jpg"
    Image.new("RGB", (16, 16), colour).convert("CMYK").save(path, quality=95)
    assert np.abs(read_image(path, format="RGB").astype(int) - colour).max() <= 6


def test_alpha_shows_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, :3] = (200, 100, 0)
    rgba[0, :, 3] = (0, 128, 255)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(rgba)), format="RGB").astype(int)
    assert image[0, 0].tolist() == [255, 255, 255]
    assert np.abs(image[0, 1] - [227, 177, 127]).max() <= 1
    assert image[0, 2].tolist() == [200, 100, 0]

    grey_alpha = Image.fromarray(rgba).convert("LA")
    image = read_image(save(tmp_path / "la.png", grey_alpha))
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[0, 2, 0] == np.asarray(grey_alpha)[0, 2, 0]


def test_transparent_palette_entry_and_colour_key(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    path = save(tmp_path / "p.png", palette, transparency=1)
    assert read_image(path, format="RGB")[0].tolist() == [[10, 20, 30], [255, 255, 255]]

    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    path = save(tmp_path / "key.png", keyed, transparency=(4, 5, 6))
    assert read_image(path, format="RGB")[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animated_gives_the_first_frame_and_a_warning(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 5), colour) for colour in ("red", "blue")]
    path = tmp_path / f"two.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING, "ext_common.images"):
        image = read_image(path, format="RGB")
    assert (image == (255, 0, 0)).all()
    assert "only the first" in caplog.text
    assert str(path) in caplog.text


def test_ordinary_picture_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo, preview = Image.fromarray(picture()), Image.fromarray(picture(3, 3))
    photo.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[preview])
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "phone.jpg").shape == (6, 9, 3)
    assert caplog.text == ""


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "float.tif", Image.fromarray(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(ImageError, match=r"float\.tif.*no defined range.*8 or 16 bits"):
        read_image(path)


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def test_decompression_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: object) -> None:
        raise RuntimeError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    with pytest.raises(ImageError, match="limit"):
        read_image(bomb(60_000, 60_000), name="bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png: 300 x 200 pixels.*59999.*INPUT.MAX_PIXELS"):
        read_image(bomb(300, 200), max_pixels=59_999, name="bomb.png")
    with pytest.raises(ImageError, match="decoded"):  # at the limit it is tried
        read_image(bomb(300, 200), max_pixels=60_000)


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jpg", Image.fromarray(picture(64, 64))).read_bytes()
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is not a picture\n", "not an image"),
        "cut.jpg": (good[: len(good) // 2], "corrupt.*truncated"),
        "head.jpg": (good[:3], "not an image"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}: .*{message}"):
            read_image(tmp_path / name)
        with pytest.raises(ImageError, match=message):
            read_image(content)
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path / ("x" * 300 + ".jpg"))


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "code.jpg"
    Image.fromarray(picture()).save(path, "EPS")
    with pytest.raises(ImageError, match="not an image in a known format"):
        read_image(path)


@settings(max_examples=40, deadline=None)
@given(
    cut=st.floats(0, 0.999),
    flip=st.integers(0, 10_000),
    kind=st.sampled_from(["JPEG", "PNG", "GIF"]),
)
def test_damaged_bytes_end_in_a_picture_or_an_image_error(cut: float, flip: int, kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture(12, 12)).save(stream, kind)
    content = bytearray(stream.getvalue())
    content[flip % len(content)] ^= 0x5A
    for damaged in (bytes(content), stream.getvalue()[: int(len(content) * cut)]):
        message = ""
        try:
            shape = read_image(damaged).shape
        except ImageError as error:
            message = str(error)
        assert shape[2:] == (3,) if not message else "\n" not in message


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    rgb = picture(*shape)
    path = save(tmp_path / "thin.png", Image.fromarray(rgb))
    np.testing.assert_array_equal(read_image(path, format="RGB"), rgb)
    assert image_size(path) == shape


NAMES = ["höhe 東京 🐈.png", "two words.png", "new\nline.png", "x" * 240 + ".png"]


@pytest.mark.parametrize("name", NAMES)
def test_unusual_names(tmp_path: Path, name: str) -> None:
    rgb = picture()
    path = save(tmp_path / name, Image.fromarray(rgb))
    np.testing.assert_array_equal(read_image(path, format="RGB"), rgb)
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert printable(name) in str(caught.value)


def test_undecodable_name_can_be_printed(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).encode("utf-8").endswith(b"(check the path)")


def test_unknown_channel_order() -> None:
    with pytest.raises(ConfigError, match="'YUV'.*RGB or BGR"):
        read_image(b"", format="YUV")


def test_pillow_state_is_left_alone(tmp_path: Path) -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    read_image(save(tmp_path / "a.png", Image.fromarray(picture())), max_pixels=10**12)
    after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    assert after == before


def test_find_images_by_ending(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c.webp", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]


# ---- BadSamplePolicy


def fail(name: str = "bad.jpg") -> None:
    raise ImageError("the file is empty", where=name)


def test_policy_raise_stops_at_the_first() -> None:
    policy = BadSamplePolicy()
    assert policy.attempt("a.jpg", lambda: 7) == 7
    with pytest.raises(ImageError, match=r"bad\.jpg: the file is empty"):
        policy.attempt("bad.jpg", fail)
    assert (policy.attempts, policy.skipped) == (2, 0)


def test_policy_skip_counts_and_names(caplog: pytest.LogCaptureFixture) -> None:
    policy = BadSamplePolicy("skip", limit=0.5)
    with caplog.at_level(logging.WARNING):
        results = [policy.attempt(f"{i}.jpg", lambda i=i: i) for i in range(3)]
        results.append(policy.attempt("bad.jpg", fail))
    assert results == [0, 1, 2, None]
    assert (policy.attempts, policy.skipped) == (4, 1)
    assert "bad.jpg: the file is empty" in caplog.text


@pytest.mark.parametrize(
    ("limit", "grace", "good", "allowed"),
    [(0.1, 3, 0, 3), (0.1, 3, 100, 11), (0.0, 0, 50, 0), (1.0, 0, 0, 40)],
)
def test_policy_limit_applies_after_the_grace_number(
    limit: float, grace: int, good: int, allowed: int
) -> None:
    policy = BadSamplePolicy("skip", limit=limit, grace=grace)
    for _ in range(good):
        policy.attempt("good.jpg", lambda: 1)
    for _ in range(allowed):
        assert policy.attempt("bad.jpg", fail) is None
    if limit < 1:
        with pytest.raises(DatasetError, match=rf"{allowed + 1} of .*bad\.jpg.*BAD_SAMPLE_LIMIT"):
            policy.attempt("bad.jpg", fail)
    assert policy.attempts == good + allowed + (limit < 1)


def test_policy_leaves_programming_errors_alone() -> None:
    with pytest.raises(ZeroDivisionError):
        BadSamplePolicy("skip").attempt("a.jpg", lambda: 1 // 0)


def test_policy_survives_pickling() -> None:
    policy = BadSamplePolicy("skip", limit=0.25, grace=2)
    policy.attempt("bad.jpg", fail)
    copy = pickle.loads(pickle.dumps(policy))
    assert (copy.mode, copy.limit, copy.grace, copy.skipped) == ("skip", 0.25, 2, 1)
    copy.attempt("bad.jpg", fail)
    assert (policy.skipped, copy.skipped) == (1, 2)


def test_policy_refuses_nonsense() -> None:
    with pytest.raises(ConfigError, match="'ignore'.*skip or raise"):
        BadSamplePolicy("ignore")
    with pytest.raises(ConfigError, match="BAD_SAMPLE_LIMIT"):
        BadSamplePolicy("skip", limit=1.5)


def test_policy_of_a_configuration() -> None:
    cfg = get_config()
    cfg.INPUT.BAD_SAMPLE_LIMIT = 0.02
    assert BadSamplePolicy.from_config(cfg) == BadSamplePolicy("skip", limit=0.02)


class Files(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], policy: BadSamplePolicy) -> None:
        self.paths, self.policy = paths, policy

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, ...] | None:
        path = self.paths[index]
        image = self.policy.attempt(path, lambda: read_image(path))
        return None if image is None else image.shape


@pytest.mark.parametrize("workers", [0, 2])
def test_policy_counts_reach_the_main_process(tmp_path: Path, workers: int) -> None:
    paths = [save(tmp_path / f"{i}.png", Image.fromarray(picture())) for i in range(8)]
    paths[3].write_bytes(b"")
    paths[6].unlink()  # deleted between check and use
    policy = BadSamplePolicy("skip")
    loader = torch.utils.data.DataLoader(
        Files(paths, policy),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    shapes = list(loader)
    assert [shape is None for shape in shapes] == [i in (3, 6) for i in range(8)]
    assert (policy.attempts, policy.skipped) == (8, 2)
