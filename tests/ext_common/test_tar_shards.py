"""Images in tar archives: numbering, labels, bad images, the authors' index layout."""

from __future__ import annotations

import base64
import gzip
import io
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ext_common import tar_archive
from ext_common.errors import DatasetError, ImageError
from ext_common.images import BadSamplePolicy, read_image
from ext_common.tar_archive import TarArchive
from ext_common.tar_list import read_tar_counts, read_tar_list, write_tar_list
from ext_common.tar_published_index import PublishedIndex
from ext_common.tar_shards import TarDataset, TarRecordReader
from tests.ext_common.tar_files import images_tar, jpeg, write_tar
from tests.golden_cases import golden_root

JPEG_TOLERANCE = 0.5  # mean grey level, as the golden set's README says


def golden_case() -> dict[str, Any]:
    return json.loads((golden_root() / "detic" / "tar_dataset.json").read_text())


def unpack_golden(folder: Path, *, with_index: bool) -> list[Path]:
    case = golden_case()
    tars = []
    for synset, text in case["tars_base64"].items():
        tars.append(folder / f"{synset}.tar")
        tars[-1].write_bytes(base64.b64decode(text))
        if with_index:
            index = case["index"][synset]
            np.save(folder / f"{synset}_names.npy", np.array(index["names"]))
            np.save(folder / f"{synset}_offsets.npy", np.array(index["offsets"], dtype=np.int64))
    return tars


@pytest.mark.golden
@pytest.mark.parametrize("with_index", [False, True])
def test_golden_tar_dataset(tmp_path: Path, with_index: bool) -> None:
    dataset = TarDataset(unpack_golden(tmp_path, with_index=with_index))
    expected = golden_case()["decoded"]

    assert len(dataset) == len(expected)
    assert dataset.labels.tolist() == [entry["label"] for entry in expected]
    for entry in expected:
        sample = dataset[entry["index"]]
        assert sample is not None
        assert sample.label == entry["label"]
        assert list(sample.image_HWC.shape) == [*entry["hw"], 3]
        assert abs(sample.image_HWC.mean() - entry["mean"]) <= JPEG_TOLERANCE
    assert any(tmp_path.glob("*.index")) != with_index


@pytest.mark.golden
def test_golden_index_is_what_scanning_finds(tmp_path: Path) -> None:
    for tar in unpack_golden(tmp_path, with_index=True):
        index = golden_case()["index"][tar.stem]
        scanned = TarArchive(tar)
        published = TarArchive(
            tar,
            PublishedIndex(
                tmp_path / f"{tar.stem}_names.npy", tmp_path / f"{tar.stem}_offsets.npy"
            ),
        )

        assert list(scanned.names) == index["names"] == list(published.names)
        for member in range(len(scanned)):
            assert scanned.read(member) == published.read(member)


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Three, none and two images; two of them are compressed."""
    return [
        images_tar(tmp_path / "n1.tar", 3, gzipped=(1,)),
        write_tar(tmp_path / "n2.tar", {}),
        images_tar(tmp_path / "n3.tar", 2, first=10, gzipped=(0,)),
    ]


def test_numbering_runs_over_the_archives(tars: list[Path]) -> None:
    dataset = TarDataset(tars)
    expected = [
        jpeg(seed, (6 + number, 8)) for seed, number in ((0, 0), (1, 1), (2, 2), (10, 0), (11, 1))
    ]

    assert len(dataset) == 5
    assert dataset.labels.tolist() == [0, 0, 0, 2, 2]
    # an index equal to a cumulative count belongs to the next archive that has files
    assert [dataset.locate(index) for index in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert [dataset.read(index) for index in range(5)] == expected
    assert [dataset.name(index) for index in (0, 4)] == ["n1_0.JPEG", "n3_1.JPEG"]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            dataset.locate(index)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_images_are_what_read_image_gives(tars: list[Path], order: str) -> None:
    dataset = TarDataset(tars, image_format=order)

    for index in range(len(dataset)):
        np.testing.assert_array_equal(
            dataset.image(index), read_image(dataset.read(index), format=order)
        )


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    Image.new("RGB", (9, 4)).save(stream, "JPEG", exif=exif)
    dataset = TarDataset([write_tar(tmp_path / "a.tar", {"a.jpg": stream.getvalue()})])

    assert dataset.image(0).shape == (9, 4, 3)


BAD_IMAGES = {
    "text": b"not an image",
    "nothing": b"",
    "cut": jpeg()[:200],
    "cut gzip": gzip.compress(jpeg())[:-30],
    "damaged gzip": b"\x1f\x8b\x08" + b"\xff" * 40,
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_an_error_with_its_place(tmp_path: Path, kind: str) -> None:
    tar = write_tar(tmp_path / "a.tar", {"good.jpg": jpeg(), "bad.jpg": BAD_IMAGES[kind]})
    dataset = TarDataset([tar])

    with pytest.raises(ImageError, match=r"a\.tar:bad\.jpg"):
        dataset[1]
    assert dataset[0] is not None


def test_the_policy_decides_about_bad_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = write_tar(tmp_path / "a.tar", {"good.jpg": jpeg(), "bad.jpg": b"?"})
    policy = BadSamplePolicy("skip", limit=0.5, grace=1)
    dataset = TarDataset([tar], policy=policy)

    assert dataset[1] is None
    assert dataset[0] is not None
    assert (policy.attempts, policy.skipped) == (2, 1)
    assert "a.tar:bad.jpg" in caplog.text
    with pytest.raises(DatasetError, match="2 of 3 samples are bad"):
        dataset[1]


def test_a_member_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archive, "MOST_UNPACKED", 1000)
    archive = TarArchive(
        write_tar(
            tmp_path / "a.tar",
            {
                "fits": gzip.compress(b"x" * 600) + gzip.compress(b"y" * 400),
                "not": gzip.compress(b"z" * 1001),
            },
        )
    )

    assert archive.read_unpacked(0) == b"x" * 600 + b"y" * 400
    with pytest.raises(ImageError, match=r"a\.tar:not: a gzip member of more than 1000 bytes"):
        archive.read_unpacked(1)


def test_an_image_over_the_pixel_limit(tars: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"n1\.tar:n1_0\.JPEG: 8 x 6 pixels"):
        TarDataset(tars, max_pixels=10).image(0)


def rename_members(tar: Path, rename: Callable[[str], str]) -> None:
    """Another archive of the same size and time."""
    before = tar.stat()
    archive = TarArchive(tar)
    members = {rename(name): archive.read(number) for number, name in enumerate(archive.names)}
    write_tar(tar, members)
    os.utime(tar, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert tar.stat().st_size == before.st_size


def test_never_the_bytes_of_another_file(tmp_path: Path) -> None:
    tar = images_tar(tmp_path / "n1.tar", 5)
    dataset = TarDataset([tar])
    # neither size nor time nor the first and last member tell it
    rename_members(tar, lambda name: name.replace("_2.", "_x."))

    with pytest.raises(DatasetError, match="not the one that was indexed"):
        dataset.image(2)
    assert dataset.image(1).shape == (7, 8, 3)


@pytest.mark.parametrize("published", [False, True])
def test_an_archive_that_is_exchanged_in_use(tmp_path: Path, published: bool) -> None:
    tars = unpack_golden(tmp_path, with_index=published)
    dataset = TarDataset(tars)
    write_tar(tars[0], {f"other_{number}": jpeg(number) for number in range(6)})

    for index, label in enumerate(dataset.labels):
        if label == 0:
            with pytest.raises(DatasetError, match="not the one that was indexed|the index has"):
                dataset.read(index)
        else:
            assert dataset.image(index).size > 0


def test_an_index_that_is_exchanged_in_use(tars: list[Path]) -> None:
    dataset = TarDataset(tars)
    tars[0].with_name("n1.tar.index").unlink()

    with pytest.raises(DatasetError, match="the index changed while it was in use"):
        dataset.read(0)


def test_without_a_place_for_the_index(tars: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    dataset = TarDataset(tars, index_dir=tmp_path / "file" / "x")

    assert pickle.loads(pickle.dumps(dataset)).image(4).shape == (7, 8, 3)


def test_a_cut_archive_keeps_its_numbering(
    tars: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(tars[0], 2048)  # inside the second member
    dataset = TarDataset(tars)
    samples = [dataset[index] for index in range(len(dataset))]

    assert [sample.label for sample in samples if sample] == [0, 2, 2]
    assert caplog.text.count("cut off at byte") == 1


def test_a_cut_archive_with_counts_moves_no_number(tars: list[Path]) -> None:
    whole = [jpeg(seed, (6 + n, 8)) for seed, n in ((0, 0), (1, 1), (2, 2), (10, 0), (11, 1))]
    os.truncate(tars[0], 2048)  # inside the second member
    policy = BadSamplePolicy("skip", limit=1.0)
    dataset = TarDataset(tars, counts=[3, 0, 2], policy=policy)

    assert len(dataset) == 5
    for index in (0, 3, 4):
        assert dataset.read(index) == whole[index]
    with pytest.raises(ImageError, match=r"n1\.tar: the archive is cut off before file 1"):
        dataset.read(1)
    assert [sample.label if sample else None for sample in dataset] == [0, None, None, 2, 2]
    assert policy.skipped == 2


@pytest.mark.parametrize("counts", [[4, 0, 2], [2, 0, 2], [3, 1, 2]])
def test_archives_with_other_files_than_counted(tars: list[Path], counts: list[int]) -> None:
    with pytest.raises(DatasetError, match=r"has \d files and had \d when the annotations"):
        TarDataset(tars, counts=counts)


def test_few_archives_are_open_at_a_time(tmp_path: Path) -> None:
    tars = [images_tar(tmp_path / f"n{number}.tar", 2, first=number) for number in range(8)]
    dataset = TarDataset(tars, open_archives=2)
    once = [dataset.read(index) for index in range(16)]

    assert len(dataset._archives._open) == 2
    assert [dataset.read(index) for index in reversed(range(16))] == once[::-1]


def test_threads_share_a_dataset(tmp_path: Path) -> None:
    tars = [images_tar(tmp_path / f"n{number}.tar", 2, first=10 * number) for number in range(5)]
    dataset = TarDataset(tars, open_archives=1)
    expected = [dataset.read(index) for index in range(10)]
    wrong: list[int] = []

    def read_all(start: int) -> None:
        for step in range(60):
            index = (start + 3 * step) % 10
            if dataset.read(index) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read_all, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Means(torch.utils.data.Dataset[float]):
    """Mean grey level of every image; opens nothing before it is asked."""

    def __init__(self, dataset: TarDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> float:
        return float(self.dataset.image(index).mean())


def test_loader_workers(tars: list[Path]) -> None:
    means = Means(TarDataset(tars))
    assert len(means.dataset._archives._open) == 0
    here = [means[index] for index in range(len(means))]  # open here, before the fork
    context = multiprocessing.get_context("fork")

    loader = torch.utils.data.DataLoader(
        means, batch_size=None, num_workers=2, multiprocessing_context=context
    )

    assert list(loader) == here


def test_archives_can_be_pickled(tars: list[Path]) -> None:
    archive = TarArchive(tars[0])

    assert pickle.loads(pickle.dumps(archive)).read(2) == archive.read(2)
    assert archive.table.by_name == {f"n1_{n}.JPEG": n for n in range(3)}  # type: ignore[attr-defined]


def test_records_are_read_by_tar_index(tars: list[Path]) -> None:
    reader = pickle.loads(pickle.dumps(TarRecordReader(TarDataset(tars))))

    assert reader({"image_id": 1, "tar_index": 3}).shape == (6, 8, 3)
    for index in (5, -1, None, "0"):
        with pytest.raises(
            DatasetError, match=r"image 7 has tar_index .*the archives have 5 files"
        ):
            reader({"image_id": 7, "tar_index": index})


def test_archives_of_one_name_need_indices_beside_them(tmp_path: Path) -> None:
    same = [images_tar(tmp_path / name / "a.tar", 1, first=ord(name)) for name in "xy"]

    with pytest.raises(DatasetError, match="1 archives have the name of another: a.tar"):
        TarDataset(same, index_dir=tmp_path / "indices")
    with pytest.raises(DatasetError, match="no tar archives"):
        TarDataset([])
    assert len(TarDataset(same)) == 2


@pytest.mark.parametrize(
    ("names", "offsets", "message"),
    [
        (["a", "b", "c"], [0, 3, 6], "3 offsets for 3 names"),
        (["a", "b"], [3, 0, 6], "ascending"),
        (
            ["n1_0.JPEG", "n1_2.JPEG"],
            [0, 3, 6],
            "has 'n1_2.JPEG' at byte 1536, the archive 'n1_1.JPEG'",
        ),
        (
            ["n1_0.JPEG", "n1_1.JPEG"],
            [0, 2, 6],
            "has 'n1_1.JPEG' at byte 1024, the archive nothing",
        ),
        (["n1_0.JPEG", "n1_1.JPEG"], [0, 3, 4], "has 'n1_1.JPEG' at byte 1536"),
        ([1, 2], [0, 3, 6], "not one row of texts"),
        (["a", "b"], [0.0, 3.0, 6.0], "not one row of integers"),
    ],
)
def test_wrong_published_indices(
    tmp_path: Path, names: list[Any], offsets: list[Any], message: str
) -> None:
    tar = images_tar(tmp_path / "n1.tar", 3)
    np.save(tmp_path / "n1_names.npy", np.array(names))
    np.save(tmp_path / "n1_offsets.npy", np.array(offsets))

    with pytest.raises(DatasetError, match=message):
        TarDataset([tar]).read(1)


def test_pickled_published_indices_are_refused(tmp_path: Path) -> None:
    tar = images_tar(tmp_path / "n1.tar", 1)
    np.save(tmp_path / "n1_names.npy", np.array(["n1_0.JPEG"], dtype=object), allow_pickle=True)
    np.save(tmp_path / "n1_offsets.npy", np.array([0, 3]))

    with pytest.raises(DatasetError, match="not a readable array.*remove the index files"):
        TarDataset([tar]).read(0)


def test_lists_of_archives(tars: list[Path], tmp_path: Path) -> None:
    folder = tars[0].parent
    (folder / "notes.txt").write_text("n3.tar\n\nn1.tar\n")
    np.save(folder / "list.npy", np.array(["n3.tar", str(tars[0])]))
    (folder / "empty.txt").write_text("\n")
    np.save(folder / "numbers.npy", np.arange(3))

    write_tar_list(folder / "lists" / "made.npy", tars, [3, 0, 2])
    assert read_tar_list(folder) == tars
    assert [p.resolve() for p in read_tar_list(folder / "lists" / "made.npy")] == tars
    assert read_tar_counts(folder / "lists" / "made.npy") == [3, 0, 2]
    assert read_tar_counts(folder / "list.npy") is None
    np.save(folder / "list_counts.npy", np.array([3, 0, 2]))
    with pytest.raises(DatasetError, match="the counts do not belong to the list"):
        read_tar_counts(folder / "list.npy")
    assert read_tar_list(folder / "notes.txt") == [tars[2], tars[0]]
    assert read_tar_list(folder / "list.npy") == [tars[2], tars[0]]
    with pytest.raises(DatasetError, match="no tar archives"):
        read_tar_list(folder / "empty.txt")
    for name in ("numbers.npy", "missing.txt"):
        with pytest.raises(DatasetError, match="list of archives cannot be read"):
            read_tar_list(folder / name)
