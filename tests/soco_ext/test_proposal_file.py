from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ext_common.data.box_file import ImageBoxes, write_boxes
from ext_common.errors import DatasetError
from soco_ext.proposals.journal import Journal
from soco_ext.proposals.proposal_file import merge_files, open_proposals, write_proposals
from soco_ext.proposals.published_json import write_published


def image(name: str, count: int, seed: int = 0, *, whole: bool = True) -> ImageBoxes:
    boxes = np.random.default_rng(seed).uniform(0, 400, (count, 4))
    return ImageBoxes(name, (300 + seed, 400), np.floor(boxes) if whole else boxes)


def test_files_of_nothing_or_of_another_command_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(DatasetError, match="cannot be read.*soco-proposals"):
        open_proposals(path)
    with pytest.raises(DatasetError, match="no images"):
        write_proposals(path, [], {})
    write_boxes(path, [image("a.jpg", 1)], "proposals", {})
    with pytest.raises(DatasetError, match="made by proposals, not soco-proposals"):
        open_proposals(path)


def test_merging_parts(tmp_path: Path) -> None:
    parts = []
    for number in (1, 2, 3):
        images = [image(f"{n}.jpg", n, n) for n in range(number, 10, 3)]
        path = tmp_path / f"p{number}"
        write_proposals(path, images, {"source": "random", "shard": f"{number}/3"})
        parts.append(path)
    assert merge_files(parts, tmp_path / "all") == 9
    file = open_proposals(tmp_path / "all")
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
        ImageBoxes("n1/a.JPEG", (100, 90), np.array([[3, 4, 34, 43], [0, 0, 89, 99]])),
        ImageBoxes("n2/b.x.JPEG", (100, 90), np.zeros((0, 4))),
    ]
    write_proposals(tmp_path / "p", images, {})
    listed = write_published(open_proposals(tmp_path / "p"), tmp_path / "train_none.json")
    content = json.loads((tmp_path / "train_none.json").read_text())
    assert content == {"a": [[3, 4, 32, 40], [0, 0, 90, 100]], "b": []}
    assert listed == tmp_path / "train_noneno_props_images.txt"  # the authors' name for it
    assert listed.read_text() == "b\n"
    write_proposals(tmp_path / "p", [*images, image("n3/a.1.jpg", 1)], {})
    with pytest.raises(DatasetError, match="two images of one key 'a'"):
        write_published(open_proposals(tmp_path / "p"), tmp_path / "q.json")
    write_proposals(tmp_path / "p", [image("c.jpg", 1, whole=False)], {})
    with pytest.raises(DatasetError, match="fractions of pixels"):
        write_published(open_proposals(tmp_path / "p"), tmp_path / "q.json")


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
    with pytest.raises(DatasetError, match="other options: source 'test', now 'other'.*--restart"):
        Journal(path, {"source": "other"})
    path.write_bytes(content[:5])  # killed in its first moment
    with Journal(path, {"source": "other"}) as journal:
        assert not journal.done
