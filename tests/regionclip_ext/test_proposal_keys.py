"""Stored regions belong to one picture: keys with their sources, repeats, parts of other images."""

from __future__ import annotations

import base64
import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Instances

from ext_common.errors import DatasetError
from regionclip_ext.data.pair_mapper import PairMapper
from regionclip_ext.data.pair_sources import COCO, TAR, TSV, open_pairs
from regionclip_ext.data.pairs import PairRecords, source_labels
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.modeling.regions.source import as_regions
from regionclip_ext.proposals.compute import ProposalRun
from regionclip_ext.proposals.store import ProposalStore, part_path
from tests.regionclip_ext.pair_files import picture


class _Red:
    """Proposes one box, as wide as the image is red: other pictures have other boxes."""

    def propose(self, images: Any, image_sizes: Any) -> list[Instances]:
        return [
            as_regions(torch.tensor([[0.0, 0.0, _width(image), 9.0]]), size, torch.ones(1))
            for image, size in zip(images, image_sizes, strict=True)
        ]


def _width(image: torch.Tensor) -> float:
    return float(image[0].float().mean()) / 8


def _propose(records: PairRecords, folder: Path, *, part_size: int = 4096, **options: Any) -> int:
    device = torch.device("cpu")
    header = {"nms": 0.5}
    resize = ShortSideResize(48)  # the size of the pictures
    run = ProposalRun(
        records, _Red(), resize, folder, header, device, part_size=part_size, **options
    )
    return run.run()


def _assert_each_has_its_own(records: PairRecords, folder: Path) -> None:
    """In training every image gets the box of its own pixels."""
    store = pickle.loads(pickle.dumps(ProposalStore(folder)))
    mapper = PairMapper(records, ShortSideResize(48), ("{}",), flip=0, proposals=store)
    for place in range(len(records)):
        sample = mapper(records[place])
        (box,) = sample["proposals"].proposal_boxes.tensor.tolist()
        assert box[2] == pytest.approx(_width(sample["image"]), abs=1e-4)


def _write(kind: str, folder: Path, name: str, rows: Sequence[tuple[str, int]]) -> str:
    """A source of (key, number of a picture); returns its entry of ``PATH_TRAIN``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [(key, picture(number), f"a wall {number}") for key, number in rows]
    if kind == TSV:
        lines = [f"{key}\t{base64.b64encode(content).decode()}\n" for key, content, _ in pictures]
        for index in folder.glob("*.lineidx"):
            index.unlink()  # of other rows
        (folder / f"{name}.images.tsv").write_text("".join(lines))
        texts = [f"{key}\t{text}\n" for key, _, text in pictures]
        (folder / f"{name}.text.tsv").write_text("".join(texts))
        return str(folder / f"{name}.images.tsv")
    if kind == TAR:
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for key, content, text in pictures:
                for member, data in ((f"{key}.png", content), (f"{key}.txt", text.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return str(folder / f"{name}.tar")
    (folder / name).mkdir()
    for key, content, _ in pictures:
        (folder / name / f"{key}.png").write_bytes(content)
    value = {
        "images": [{"id": n, "file_name": f"{key}.png"} for n, (key, *_) in enumerate(pictures)],
        "annotations": [{"image_id": n, "caption": row[2]} for n, row in enumerate(pictures)],
    }
    (folder / f"{name}.json").write_text(json.dumps(value))
    return f"{folder / f'{name}.json'}+{folder / name}"


def _records(kind: str, *paths: str) -> PairRecords:
    return PairRecords([source for path in paths for source in open_pairs(kind, path)])


@pytest.mark.parametrize("part_size", [1, 4096], ids=["two parts", "one part"])
@pytest.mark.parametrize("names", [("one", "two"), ("same", "same")], ids=["names", "folders"])
@pytest.mark.parametrize("kind", [TAR, TSV, COCO])
def test_images_of_one_key_in_two_sources_keep_their_own_regions(
    tmp_path: Path, kind: str, names: tuple[str, str], part_size: int
) -> None:
    here = tmp_path / "here"
    paths = [_write(kind, here / f"f{n}", name, [("0001", n)]) for n, name in enumerate(names)]
    records = _records(kind, *paths)
    keys = list(records.keys())
    assert len(set(keys)) == 2
    assert [records.read(place).key for place in range(2)] == keys
    _propose(records, tmp_path / "regions", part_size=part_size)
    _assert_each_has_its_own(records, tmp_path / "regions")
    # the regions serve another machine, where the data are elsewhere
    here.rename(tmp_path / "there")
    records = _records(kind, *(path.replace(str(here), str(tmp_path / "there")) for path in paths))
    _assert_each_has_its_own(records, tmp_path / "regions")
    assert _propose(records, tmp_path / "regions", part_size=part_size) == 0


def test_names_of_sources_have_as_many_folders_as_they_need() -> None:
    places = ["/d/cc3m/0.tar", "/d/cc12m/0.tar", "/d/cc12m/1.tar", "/d/./cc3m/0.tar", "/e/a:b%"]
    assert source_labels([Path(place) for place in places]) == [
        "cc3m/0.tar",
        "cc12m/0.tar",
        "1.tar",
        "cc3m/0.tar",
        "a%3Ab%25",
    ]
    assert source_labels([Path("/a/x"), Path("/b/a/x")]) == ["/a/x", "b/a/x"]
    assert source_labels([]) == []


def test_two_files_of_captions_share_the_regions_of_one_folder(tmp_path: Path) -> None:
    path = _write(COCO, tmp_path, "train", [("a", 0), ("b", 1)])
    (tmp_path / "more.json").write_text((tmp_path / "train.json").read_text())
    more = f"{tmp_path / 'more.json'}+{tmp_path / 'train'}"
    _propose(_records(COCO, path), tmp_path / "regions")
    _assert_each_has_its_own(_records(COCO, path, more), tmp_path / "regions")


@pytest.mark.parametrize("part_size", [1, 4096], ids=["parts", "one part"])
def test_rows_of_one_picture_share_its_regions(tmp_path: Path, part_size: int) -> None:
    rows = [("a", 0), ("b", 1), ("a", 0), ("a", 0)]
    records = _records(TSV, _write(TSV, tmp_path / "tsv", "train", rows))
    assert _propose(records, tmp_path / "regions", part_size=part_size) == 4
    _assert_each_has_its_own(records, tmp_path / "regions")


@pytest.mark.parametrize("skip_bad", [False, True], ids=["stop", "skip"])
@pytest.mark.parametrize("part_size", [2, 4096], ids=["parts", "one part"])
def test_two_pictures_of_one_key_in_a_file_are_refused(
    tmp_path: Path, part_size: int, skip_bad: bool
) -> None:
    rows = [("a", 0), ("b", 1), ("c", 0), ("a", 2)]
    records = _records(TSV, _write(TSV, tmp_path / "tsv", "train", rows))
    for _ in range(2):  # the second time the part of the first picture is there
        with pytest.raises(DatasetError) as caught:
            _propose(records, tmp_path / "regions", part_size=part_size, skip_bad=skip_bad)
        text = str(caught.value)
        assert "row 4, a: is another picture than" in text
        assert "row 1, a, and both have the key 'train.images.tsv:a'" in text
        assert "give each picture a key of its own" in text


def test_parts_of_other_images_are_refused_before_any_is_made(tmp_path: Path) -> None:
    def records(*keys: str) -> PairRecords:
        rows = [(key, number) for number, key in enumerate(keys)]
        return _records(TSV, _write(TSV, tmp_path / "tsv", "train", rows))

    folder = tmp_path / "regions"
    assert _propose(records("a", "b", "c"), folder, part_size=2) == 3
    for keys, part in (
        (("x", "b", "c"), 0),  # other pictures
        (("b", "a", "c"), 0),  # the same in another order
        (("a", "b", "x", "d", "e"), 1),
        (("a", "b", "c", "d"), 1),  # more than the last part holds
        (("a", "b"), 1),  # a part that is left over
    ):
        with pytest.raises(DatasetError, match="other images") as caught:
            _propose(records(*keys), folder, part_size=2)
        assert caught.value.where == str(part_path(folder, part))
        assert "delete this file, or name another --output" in str(caught.value)
        assert not part_path(folder, 2).exists()
    part_path(folder, 1).unlink()
    assert _propose(records("a", "b", "c", "d", "e"), folder, part_size=2) == 3


def test_rows_that_a_list_chooses_have_their_own_keys(tmp_path: Path) -> None:
    path = _write(TSV, tmp_path / "tsv", "train", [("a", 0), ("b", 1), ("c", 2)])
    Path(path).with_suffix(".linelist").write_text("2\n0\n")
    records = _records(TSV, path)
    assert list(records.keys()) == [records.read(place).key for place in range(2)]
    _propose(records, tmp_path / "regions")
    _assert_each_has_its_own(records, tmp_path / "regions")
