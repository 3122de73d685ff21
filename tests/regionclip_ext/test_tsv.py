"""Image-text pairs in TSV files: the authors' files, made indices, and files out of step."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ext_common.errors import DatasetError, ImageError
from ext_common.images import read_image
from regionclip_ext.data.tsv_file import TsvFile, row_offsets
from regionclip_ext.data.tsv_pairs import TsvPairs, find_tsv_pairs
from regionclip_ext.modeling.clip_tokens import tokenize
from tests.golden_cases import golden_arrays
from tests.regionclip_ext.pair_files import caption, picture, write_tsv


@pytest.mark.golden
def test_golden_tsv_dataset(tmp_path: Path) -> None:
    arrays = golden_arrays("regionclip", "tsv_dataset.npz")
    for kind in ("images", "text"):
        (tmp_path / f"golden.{kind}.tsv").write_bytes(arrays[f"{kind}_tsv_bytes"].tobytes())
        (tmp_path / f"golden.{kind}.lineidx").write_bytes(arrays[f"{kind}_lineidx_bytes"].tobytes())
        made = row_offsets(tmp_path / f"golden.{kind}.tsv")
        given = arrays[f"{kind}_lineidx_bytes"].tobytes().split()
        assert made.tolist() == [int(offset) for offset in given]
    (pairs,) = find_tsv_pairs(tmp_path)
    assert len(pairs) == int(arrays["num_items"])
    for place in range(len(pairs)):
        pair = pairs.pair(place)
        assert isinstance(pair.image, bytes)
        image = read_image(pair.image, format="RGB")
        assert image.shape[:2] == tuple(arrays["hw"][place])
        if f"image{place}" in arrays:
            np.testing.assert_array_equal(image, arrays[f"image{place}"])
        tokens = tokenize(pair.captions.texts).flatten()
        assert len(tokens) == int(arrays["num_caption_tokens"][place])
        np.testing.assert_array_equal(tokens, arrays[f"tokens{place}"])


def test_missing_index_is_made_once_and_pairs_survive_pickling(tmp_path: Path) -> None:
    images = write_tsv(tmp_path)
    pairs = TsvPairs(images)
    assert (tmp_path / "train.images.lineidx").read_text().split()[0] == "0"
    assert len(pairs) == 6
    again = pickle.loads(pickle.dumps(pairs))
    for place in (5, 0, 3):
        pair = again.pair(place)
        assert pair.key == f"key{place}"
        assert pair.image == picture(place)
        assert pair.captions.texts == (caption(place), "a wall")
    assert list(pairs.captions()) == [t for n in range(6) for t in (caption(n), "a wall")]


def test_index_of_an_older_file_is_out_of_step(tmp_path: Path) -> None:
    images = write_tsv(tmp_path, index=True)
    text = images.read_text()
    images.write_text("key-new\tAAAA\n" + text)  # a row was added, the index was not
    with pytest.raises(DatasetError, match="lineidx.*does not say where the rows"):
        TsvPairs(images)
    (tmp_path / "train.images.lineidx").write_text("0\nword\n")
    with pytest.raises(DatasetError, match="not one byte offset per line"):
        TsvFile(images)


def test_rows_of_both_files_must_belong_together(tmp_path: Path) -> None:
    images = write_tsv(tmp_path)
    texts = tmp_path / "train.text.tsv"
    rows = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join(rows[:-1]))
    with pytest.raises(DatasetError, match="5 rows for 6 images"):
        TsvPairs(images)
    (tmp_path / "train.text.lineidx").unlink()
    texts.write_text("".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(DatasetError, match="the caption is of 'key1', the image of 'key0'"):
        TsvPairs(images)


def test_line_list_chooses_rows(tmp_path: Path) -> None:
    images = write_tsv(tmp_path)
    (tmp_path / "train.images.linelist").write_text("4\n1\n")
    pairs = TsvPairs(images)
    assert [pairs.pair(n).key for n in range(len(pairs))] == ["key4", "key1"]
    (tmp_path / "train.images.linelist").write_text("6\n")
    with pytest.raises(DatasetError, match="not all from 0 to 5"):
        TsvPairs(images)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.image.tsv").write_text("k\tnot base64!\n")
    (tmp_path / "a.text.tsv").write_text("k\ta dog\n")
    with pytest.raises(ImageError, match=r"a\.image\.tsv, row 1, k: no base64"):
        TsvPairs(tmp_path / "a.image.tsv").pair(0)
    (tmp_path / "a.text.tsv").write_text('k\t{"captions": [3]}\n')
    (tmp_path / "a.text.lineidx").unlink()
    with pytest.raises(DatasetError, match="not a list of texts"):
        TsvPairs(tmp_path / "a.image.tsv").captions().__next__()


def test_folder_without_image_files_and_more_than_twenty(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no image files"):
        find_tsv_pairs(tmp_path)
    for number in range(21):
        write_tsv(tmp_path, 1, stem=f"part{number:02d}")
    found = find_tsv_pairs(tmp_path)
    assert [pairs.images.path.name[:6] for pairs in found] == [f"part{n:02d}" for n in range(20)]
