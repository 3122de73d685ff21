from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from ext_common.errors import DatasetError
from soco_ext.proposals.journal import Journal
from soco_ext.proposals.proposal_file import (
    ImageProposals,
    ProposalFile,
    merge_files,
    write_proposals,
)
from soco_ext.proposals.published_json import write_published


def image(name: str, count: int, seed: int = 0, *, whole: bool = True) -> ImageProposals:
    boxes = np.random.default_rng(seed).uniform(0, 400, (count, 4))
    return ImageProposals(name, (300 + seed, 400), np.floor(boxes) if whole else boxes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    # also names that sort differently as text and as bytes, and one that is no UTF-8
    names = ["b/1.jpg", "a/1.jpg", "a/1.b.jpg", "ä/1.jpg", "a-1.jpg", "z\udcff.jpg", "Z/1.JPG"]
    images = [image(name, n, n) for n, name in enumerate(names)]
    path = tmp_path / "p"
    assert write_proposals(path, images, {"source": "test"}) == len(names)
    file = ProposalFile(path, check=True)
    assert len(file) == len(names)
    assert file.settings == {"source": "test"}
    for wanted in images:
        place = file.find(wanted.name)
        assert place is not None
        assert file.name(place) == wanted.name
        assert file.size(place) == wanted.size_hw
        assert file.boxes(place).dtype == np.float32
        np.testing.assert_array_equal(file.boxes(place), wanted.boxes_K4)
    for missing in ("", "a", "a/1", "a/1.jpg ", "zz", "0"):
        assert file.find(missing) is None
    assert file.counts().sum() == sum(range(len(names)))
    with pytest.raises(IndexError):
        file.boxes(len(names))
    with pytest.raises(IndexError):
        file.name(-1)


def test_whole_pixels_take_eight_bytes_a_box_and_fractions_are_kept(tmp_path: Path) -> None:
    sizes = []
    for whole in (True, False):
        images = [image(f"{n}.jpg", 50, n, whole=whole) for n in range(20)]
        write_proposals(tmp_path / "p", images, {})
        sizes.append((tmp_path / "p").stat().st_size)
        file = ProposalFile(tmp_path / "p")
        place = file.find("7.jpg")
        assert place is not None
        np.testing.assert_allclose(file.boxes(place), images[7].boxes_K4, rtol=1e-6)
    assert sizes[1] - sizes[0] == 20 * 50 * 8


def test_a_copy_in_another_process_maps_the_file_itself(tmp_path: Path) -> None:
    write_proposals(tmp_path / "p", [image(f"{n}.jpg", 200, n) for n in range(50)], {})
    file = ProposalFile(tmp_path / "p")
    content = pickle.dumps(file)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).boxes(3), file.boxes(3))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(DatasetError, match="cannot be read.*soco-proposals"):
        ProposalFile(path)
    path.write_bytes(b"[]" * 100)
    with pytest.raises(DatasetError, match="another kind of file"):
        ProposalFile(path)
    with pytest.raises(DatasetError, match="'a.jpg' is there twice"):
        write_proposals(path, [image("a.jpg", 1), image("a.jpg", 2)], {})
    with pytest.raises(DatasetError, match="no images"):
        write_proposals(path, [], {})
    bad = ImageProposals("a.jpg", (5, 5), np.full((1, 4), np.nan))
    with pytest.raises(DatasetError, match="no numbers"):
        write_proposals(path, [bad], {})
    write_proposals(path, [image("a.jpg", 90)], {})
    content = bytearray(path.read_bytes())
    content[-64] ^= 1  # of the last array; behind it there is padding
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        ProposalFile(path, check=True)
    path.write_bytes(content[:-300])
    with pytest.raises(DatasetError, match="cut off"):
        ProposalFile(path)


def test_merging_parts(tmp_path: Path) -> None:
    parts = []
    for number in (1, 2, 3):
        images = [image(f"{n}.jpg", n, n) for n in range(number, 10, 3)]
        path = tmp_path / f"p{number}"
        write_proposals(path, images, {"source": "random", "shard": f"{number}/3"})
        parts.append(path)
    assert merge_files(parts, tmp_path / "all") == 9
    file = ProposalFile(tmp_path / "all")
    assert file.settings == {"source": "random"}
    assert [file.name(n) for n in range(9)] == [f"{n}.jpg" for n in range(1, 10)]
    assert file.counts().tolist() == list(range(1, 10))
    with pytest.raises(DatasetError, match="parts 2/3 are missing"):
        merge_files([parts[0], parts[2]], tmp_path / "some")
    write_proposals(parts[1], [image("2.jpg", 1)], {"source": "authors", "shard": "2/3"})
    with pytest.raises(DatasetError, match="made with.*authors.*same options"):
        merge_files(parts, tmp_path / "mixed")
    write_proposals(parts[1], [image("1.jpg", 1)], {"source": "random", "shard": "2/3"})
    with pytest.raises(DatasetError, match="'1.jpg' is there twice"):
        merge_files(parts, tmp_path / "mixed")


def test_the_authors_form(tmp_path: Path) -> None:
    images = [
        ImageProposals("n1/a.JPEG", (100, 90), np.array([[3, 4, 34, 43], [0, 0, 89, 99]])),
        ImageProposals("n2/b.x.JPEG", (100, 90), np.zeros((0, 4))),
    ]
    write_proposals(tmp_path / "p", images, {})
    listed = write_published(ProposalFile(tmp_path / "p"), tmp_path / "train_none.json")
    content = json.loads((tmp_path / "train_none.json").read_text())
    assert content == {"a": [[3, 4, 32, 40], [0, 0, 90, 100]], "b": []}
    assert listed.read_text() == "b\n"
    write_proposals(tmp_path / "p", [*images, image("n3/a.1.jpg", 1)], {})
    with pytest.raises(DatasetError, match="two images of one key 'a'"):
        write_published(ProposalFile(tmp_path / "p"), tmp_path / "q.json")
    write_proposals(tmp_path / "p", [image("c.jpg", 1, whole=False)], {})
    with pytest.raises(DatasetError, match="fractions of pixels"):
        write_published(ProposalFile(tmp_path / "p"), tmp_path / "q.json")


def test_a_journal_forgets_only_what_a_kill_cut_off(tmp_path: Path) -> None:
    path, settings = tmp_path / "j", {"source": "test"}
    images = [image(f"{n}.jpg", n, n) for n in range(4)]
    with Journal(path, settings) as journal:
        for each in images:
            journal.add(each)
    content = path.read_bytes()
    for cut in (1, 20, 69):
        path.write_bytes(content[:-cut])
        with Journal(path, settings) as journal:
            assert journal.done == {"0.jpg", "1.jpg", "2.jpg"}
            journal.add(images[3])
            found = list(journal.images())
        assert [each.name for each in found] == [each.name for each in images]
        for each, wanted in zip(found, images, strict=True):
            assert each.size_hw == wanted.size_hw
            np.testing.assert_array_equal(each.boxes_K4, wanted.boxes_K4)
        assert path.read_bytes() == content
    with pytest.raises(DatasetError, match="other options.*--restart"):
        Journal(path, {"source": "other"})
    path.write_bytes(content[:5])  # killed in its first moment
    with Journal(path, {"source": "other"}) as journal:
        assert not journal.done
