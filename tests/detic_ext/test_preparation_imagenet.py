"""Synset tables, ImageNet-LVIS folders and ImageNet-21k archives on small trees of the real form."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detic_ext.data.preparation import imagenet_21k
from detic_ext.data.preparation.annotation_file import write_annotations
from detic_ext.data.preparation.imagenet_21k import (
    SizeTask,
    archive_sizes,
    categories_of,
    image_records,
)
from detic_ext.data.preparation.imagenet_lvis import list_images, read_wnids, unpack_synsets
from detic_ext.data.preparation.synset_table import Synset, read_synsets
from ext_common.errors import DatasetError
from ext_common.images import read_image
from ext_common.tar_shards import TarDataset
from tests.ext_common.tar_files import images_tar, jpeg, write_tar

CAT = Synset("n02121620", "cat.n.01", ("cat", "true_cat"), "feline mammal")
DOG = Synset("n02084071", "dog.n.01", ("dog", "Canis_familiaris"), "a member of the genus Canis")
SYNSETS = {synset.wnid: synset for synset in (CAT, DOG)}
LVIS = [
    {"id": 4, "name": "kitty", "synset": "cat.n.01", "frequency": "f"},
    {"id": 9, "name": "puppy", "synset": "dog.n.01", "frequency": "c"},
]
HEAD = "  1 This software and database is being provided to you, the LICENSEE\n"


def rows() -> list[dict[str, Any]]:
    return [
        {"wnid": s.wnid, "synset": s.name, "lemmas": list(s.lemmas), "def": s.definition}
        for s in SYNSETS.values()
    ]


def test_synsets_from_text_json_and_wordnet(tmp_path: Path) -> None:
    text = "synset\twnid\tdef\tlemmas\n" + "".join(
        f"{r['synset']}\t{r['wnid']}\t{r['def']}\t{', '.join(r['lemmas'])}\n" for r in rows()
    )
    (tmp_path / "a.tsv").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps(rows()))
    wordnet = tmp_path / "dict"
    wordnet.mkdir()
    (wordnet / "index.noun").write_text(
        HEAD
        + "canis_familiaris n 1 3 @ ~ #m 1 1 02084071  \n"
        + "cat n 2 4 @ ~ #m %p 2 1 02121620 09900153  \n"
        + "dog n 3 5 @ ~ #m #p %p 3 1 02084071 10114209 10023039  \n"
        + "guy n 1 2 @ ~ 1 0 09900153  \n"
    )
    (wordnet / "data.noun").write_text(
        HEAD
        + "02084071 05 n 02 dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 "
        + '| a member of the genus Canis; "the dog barked"  \n'
        + '02121620 05 n 02 cat 0 true_cat 0 001 @ 02120997 n 0000 | feline mammal; "a cat"; "b"  \n'
        + "09900153 18 n 02 guy 0 cat 0 001 @ 10 n 0000 | an informal term  \n"
    )

    found = read_synsets(wordnet)

    assert read_synsets(tmp_path / "a.tsv") == read_synsets(tmp_path / "a.json") == SYNSETS
    assert {wnid: found[wnid] for wnid in SYNSETS} == SYNSETS
    assert found["n09900153"].name == "guy.n.01"
    assert CAT.category(3) == {
        "id": 3,
        "synset": "cat.n.01",
        "name": "cat",
        "def": "feline mammal",
        "synonyms": ["cat", "true_cat"],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "wnid\tsynset\tlemmas\nn00000001\ta.n.01\ta\n", "row 1 has no def"),
        ("a.tsv", "wnid\tsynset\tlemmas\tdef\nx1\ta.n.01\ta\td\n", "row 1, 'x1'"),
        ("a.tsv", "wnid\tsynset\tlemmas\tdef\nn00000001\ta.n.01\ta,,b\td\n", "is no synset"),
        ("a.tsv", "wnid\tsynset\tlemmas\tdef\n" + "n00000001\ta.n.01\ta\td\n" * 2, "stands twice"),
        ("a.tsv", "", "no synsets"),
        ("a.json", "{}", "not a list of synsets"),
        ("a.json", "[", "cannot be read"),
        ("dict/data.noun", "", "WordNet cannot be read"),
        ("dict/index.noun", "cat n x\n", "line 1 is not in WordNet's format"),
    ],
)
def test_bad_synset_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)

    with pytest.raises(DatasetError, match=message):
        read_synsets(path.parent if path.parent.name == "dict" else path)


def test_lists_of_synsets(tmp_path: Path) -> None:
    path = tmp_path / "wnids.txt"
    path.write_text("n1\n\nn2\r\n")
    assert read_wnids(path) == ["n1", "n2"]

    path.write_text("n1 n2 n1")
    with pytest.raises(DatasetError, match="1 ids given twice: n1"):
        read_wnids(path)
    path.write_text("\n")
    with pytest.raises(DatasetError, match="no synsets in the list"):
        read_wnids(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_wnids(tmp_path / "none.txt")


def save(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def test_imagenet_lvis_from_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / DOG.wnid / f"{DOG.wnid}_2.JPEG", (7, 5))
    save(tmp_path / DOG.wnid / f"{DOG.wnid}_1.JPEG", (8, 6))
    save(tmp_path / CAT.wnid / f"{CAT.wnid}_1.JPEG", (3, 4))
    save(tmp_path / "n99999999" / "a.JPEG", (3, 4))  # not asked for
    steps: list[tuple[int, int]] = []

    found = list_images(
        tmp_path, list(SYNSETS), SYNSETS, LVIS, progress=lambda *step: steps.append(step)
    )

    assert found["images"] == [
        {
            "id": number,
            "file_name": f"{wnid}/{wnid}_{place}.JPEG",
            "height": height,
            "width": width,
            "pos_category_ids": [label],
        }
        for number, (wnid, place, height, width, label) in enumerate(
            [(DOG.wnid, 1, 6, 8, 9), (DOG.wnid, 2, 5, 7, 9), (CAT.wnid, 1, 4, 3, 4)], start=1
        )
    ]
    assert found["annotations"] == []
    assert found["categories"] == [{**LVIS[0], "image_count": 1}, {**LVIS[1], "image_count": 2}]
    assert steps[-1] == (3, 3)
    assert "n99999999" in caplog.text


def test_imagenet_lvis_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / DOG.wnid / "a.JPEG", (7, 5))

    found = list_images(tmp_path, list(SYNSETS), SYNSETS, LVIS)

    assert len(found["images"]) == 1
    assert CAT.wnid in caplog.text
    with pytest.raises(DatasetError, match="no synset 'n00000009' among 2"):
        list_images(tmp_path, ["n00000009"], SYNSETS, LVIS)
    with pytest.raises(DatasetError, match=r"1 synsets that are no LVIS class: n02121620 \(cat"):
        list_images(tmp_path, list(SYNSETS), SYNSETS, LVIS[1:])


def test_bad_files_in_folders(tmp_path: Path) -> None:
    save(tmp_path / DOG.wnid / "a.JPEG", (7, 5))
    (tmp_path / DOG.wnid / "b.JPEG").write_text("gone")

    with pytest.raises(DatasetError, match="1 files that are not readable images"):
        list_images(tmp_path, [DOG.wnid], SYNSETS, LVIS)
    assert len(list_images(tmp_path, [DOG.wnid], SYNSETS, LVIS, bad_files="skip")["images"]) == 1


def test_unpacking_goes_on_where_it_was(tmp_path: Path) -> None:
    tars, root = tmp_path / "tars", tmp_path / "root"
    write_tar(tars / f"{DOG.wnid}.tar", {"a.JPEG": jpeg(1), "b.JPEG": gzip.compress(jpeg(2))})
    write_tar(tars / f"{CAT.wnid}.tar", {"c.JPEG": jpeg(3)})
    (root / CAT.wnid).mkdir(parents=True)  # there already
    (root / f".unpacking-{DOG.wnid}").mkdir()  # left by a crash
    (root / f".unpacking-{DOG.wnid}" / "a.JPEG").write_text("half")
    steps: list[tuple[int, int]] = []

    missing = unpack_synsets(
        tars, [*SYNSETS, "n00000001"], root, progress=lambda *step: steps.append(step)
    )

    assert missing == ["n00000001"]
    assert sorted(p.name for p in root.iterdir()) == sorted(SYNSETS)
    assert sorted(p.name for p in (root / DOG.wnid).iterdir()) == ["a.JPEG", "b.JPEG"]
    assert (root / DOG.wnid / "b.JPEG").read_bytes() == jpeg(2)
    assert list((root / CAT.wnid).iterdir()) == []
    assert steps == [(1, 3), (2, 3), (3, 3)]

    write_tar(tars / "n00000001.tar", {"folder/a.JPEG": b""})
    with pytest.raises(DatasetError, match="1 members in folders: folder/a.JPEG"):
        unpack_synsets(tars, ["n00000001"], root)


def tasks(folder: Path, tars: list[Path]) -> list[SizeTask]:
    return [SizeTask(tar, folder / "index", folder / "parts" / f"{tar.stem}.json") for tar in tars]


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    good = [jpeg(n, (4 + n, 9)) for n in range(2)]
    return [
        images_tar(tmp_path / f"{DOG.wnid}.tar", 3, gzipped=(1,)),
        write_tar(
            tmp_path / f"{CAT.wnid}.tar", {"a.JPEG": good[0], "b.JPEG": b"?", "c.JPEG": good[1]}
        ),
    ]


def test_imagenet_21k_records_fit_the_archives(tmp_path: Path, archives: list[Path]) -> None:
    found = [archive_sizes(task) for task in tasks(tmp_path, archives)]
    records = list(image_records([sizes.sizes_M2 for sizes in found]))

    dataset = TarDataset(archives, index_dir=tmp_path / "index")
    assert [record["tar_index"] for record in records] == [0, 1, 2, 3, 5]
    for record in records:
        index = record["tar_index"]
        assert record["id"] == index + 1
        assert record["pos_category_ids"] == [dataset.locate(index)[0] + 1]
        assert (record["height"], record["width"]) == read_image(dataset.read(index)).shape[:2]
    assert found[0].bad == ()
    assert len(found[1].bad) == 1
    assert f"{CAT.wnid}.tar:b.JPEG (not an image" in found[1].bad[0]
    assert categories_of(archives, SYNSETS) == [DOG.category(1), CAT.category(2)]


def test_known_sizes_are_not_read_again(
    tmp_path: Path, archives: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks(tmp_path, archives)[1]
    first = archive_sizes(task)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet_21k, "image_size", None)  # must not be called
        again = archive_sizes(task)
    assert again.sizes_M2.tolist() == first.sizes_M2.tolist()
    assert again.bad == first.bad

    task.kept.write_text("{")  # damaged
    assert archive_sizes(task).sizes_M2.tolist() == first.sizes_M2.tolist()
    images_tar(archives[1], 2)  # another archive
    os.utime(archives[1], ns=(1, 1))
    assert len(archive_sizes(task).sizes_M2) == 2


def test_archives_without_a_synset(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match="1 archives that are not named after a synset.*: n1.tar"
    ):
        categories_of([tmp_path / "n1.tar", tmp_path / f"{CAT.wnid}.tar"], SYNSETS)
    with pytest.raises(DatasetError, match="1 synsets with more than one archive"):
        categories_of([tmp_path / "a" / "n1.tar", tmp_path / "b" / "n1.tar"], SYNSETS)


def test_annotation_files_are_plain_json(tmp_path: Path) -> None:
    content = {"images": iter([{"id": 1}, {"id": 2}]), "annotations": [], "info": {"a": "ü\u2028"}}
    path = tmp_path / "new" / "a.json"

    assert write_annotations(path, content) == {"images": 2, "annotations": 0}
    assert json.loads(path.read_text()) == {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [],
        "info": {"a": "ü\u2028"},
    }
    assert write_annotations(path, [{"id": 3}]) == {"": 1}
    assert json.loads(path.read_text()) == [{"id": 3}]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_annotations(path, {"images": []})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_annotations(path, {"images": [{"x": 1.0}, {"x": float("nan")}]})

    assert json.loads(path.read_text()) == {"images": []}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
