from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from ext_common.data.class_folders import (
    FolderOptions,
    import_class_folders,
    load_class_folders,
    read_folder_map,
)
from ext_common.data.json_files import read_json
from ext_common.data.lvis_json import LoadOptions, dataset_dicts
from ext_common.errors import DatasetError

CLASSES = [
    {"id": 3, "name": "red_square", "synset": "square.n.01", "synonyms": ["red square", "box"]},
    {"id": 7, "name": "dog", "synset": "dog.n.01", "synonyms": ["dog", "hound"]},
]


def tree(root: Path, **folders: int) -> Path:
    """Folders with so many pictures of 6 x 4 pixels each."""
    for name, count in folders.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 4)).save(root / name / f"{number}.png")
    return root


def test_images_are_listed_in_order_with_sizes_and_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, dog=2, red_square=1)
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / "readme.md").write_text("not a folder")
    data = import_class_folders(root, CLASSES)
    assert data["categories"] == CLASSES
    assert data["annotations"] == []
    assert [
        (i["id"], i["file_name"], i["height"], i["width"], i["pos_category_ids"])
        for i in data["images"]
    ] == [
        (1, "dog/0.png", 4, 6, [7]),
        (2, "dog/1.png", 4, 6, [7]),
        (3, "red_square/0.png", 4, 6, [3]),
    ]
    records = dataset_dicts(data, str(root), "x", LoadOptions(labels_required=True))
    assert [record["pos_category_ids"] for record in records] == [[1], [1], [0]]
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_sizes_are_of_the_upright_image(tmp_path: Path) -> None:
    root = tree(tmp_path, dog=0)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (6, 4)).save(root / "dog" / "turned.jpg", exif=exif)
    (image,) = import_class_folders(root, CLASSES)["images"]
    assert (image["height"], image["width"]) == (6, 4)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("red_square", 3),
        ("Red-Square", 3),
        ("red square", 3),
        ("BOX", 3),
        ("dog.n.01", 7),
        ("Hound", 7),
    ],
)
def test_folder_names_match_names_synsets_and_synonyms(
    tmp_path: Path, folder: str, expected: int
) -> None:
    (image,) = import_class_folders(tree(tmp_path, **{folder: 1}), CLASSES)["images"]
    assert image["pos_category_ids"] == [expected]


def test_a_map_names_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", n02084071=1, n1=1)
    path = tmp_path / "map.txt"
    path.write_text("# comment\nn02084071 dog.n.01\n\nn1\tred square\nn9 dog\n", encoding="utf-8")
    options = FolderOptions(folder_map=read_folder_map(path))
    images = import_class_folders(root, CLASSES, options)["images"]
    assert [image["pos_category_ids"] for image in images] == [[7], [3]]


@pytest.mark.parametrize(
    ("text", "message"), [("a\n", "no class for folder 'a'"), ("a x\na y\n", "line 2.*given twice")]
)
def test_broken_maps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_folder_map(tmp_path / "map.txt")


def test_missing_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder map cannot be read"):
        read_folder_map(tmp_path / "none.txt")


def test_unknown_folders_are_listed_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, cow=1, dog=1, emu=1)
    with pytest.raises(DatasetError, match="2 folders that match no class: cow, emu"):
        import_class_folders(root, CLASSES)
    data = import_class_folders(root, CLASSES, FolderOptions(unknown_folders="skip"))
    assert [image["file_name"] for image in data["images"]] == ["dog/0.png"]
    assert "skipped 2 folders: cow, emu" in caplog.text


def test_two_classes_that_fit_are_an_error_unless_one_fits_exactly(tmp_path: Path) -> None:
    classes = ["big cat", "big_cat"]
    with pytest.raises(DatasetError, match=r"'Big-Cat' fits several classes, ids \[1, 2\]"):
        import_class_folders(tree(tmp_path / "a", **{"Big-Cat": 1}), classes)
    data = import_class_folders(tree(tmp_path / "b", big_cat=1), classes)
    assert data["images"][0]["pos_category_ids"] == [2]


def test_without_classes_every_folder_is_one(tmp_path: Path) -> None:
    data = import_class_folders(tree(tmp_path, owl=1, cat=2), None)
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "owl"}]
    assert [image["pos_category_ids"] for image in data["images"]] == [[1], [1], [2]]


def test_unreadable_files_are_named_or_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path, dog=1)
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "text.jpg").write_text("hello")
    with pytest.raises(DatasetError, match=r"2 files .*: dog/empty\.jpg \(.*, dog/text\.jpg \("):
        import_class_folders(root, CLASSES)
    data = import_class_folders(root, CLASSES, FolderOptions(bad_files="skip"))
    assert [image["file_name"] for image in data["images"]] == ["dog/0.png"]


def test_nothing_to_import_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        import_class_folders(tmp_path / "none", CLASSES)
    with pytest.raises(DatasetError, match="no class folders"):
        import_class_folders(tmp_path, CLASSES)
    with pytest.raises(DatasetError, match="no images in any class folder"):
        import_class_folders(tree(tmp_path, dog=0), CLASSES)
    with pytest.raises(DatasetError, match="unknown policy 'maybe'"):
        FolderOptions(bad_files="maybe")


def test_progress_is_reported_per_folder(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = tree(tmp_path, dog=2, red_square=3)
    import_class_folders(root, CLASSES, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (5, 5)]


def test_the_index_is_used_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return import_class_folders(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("ext_common.data.class_folders.import_class_folders", counting)
    root, index = tree(tmp_path / "images", dog=1), tmp_path / "index.json"
    first = load_class_folders(root, index, CLASSES)
    assert load_class_folders(root, index, CLASSES) == first == read_json(index)
    assert len(calls) == 1
    Image.new("RGB", (8, 8)).save(root / "dog" / "new.png")
    assert len(load_class_folders(root, index, CLASSES)["images"]) == 2
    os.utime(root / "dog" / "new.png", (1, 1))
    load_class_folders(root, index, CLASSES)
    load_class_folders(root, index, CLASSES[::-1])
    load_class_folders(root, index, CLASSES[::-1], FolderOptions(bad_files="skip"))
    assert len(calls) == 5
    index.write_text("{ broken")
    assert len(load_class_folders(root, index, CLASSES)["images"]) == 2
    assert len(calls) == 6


def test_a_tree_that_cannot_be_indexed_still_loads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path / "images", dog=1)
    (tmp_path / "file").touch()
    data = load_class_folders(root, tmp_path / "file" / "index.json", CLASSES)
    assert len(data["images"]) == 1
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["ünïcode 图.png", "line\nbreak.png", "x" * 240 + ".png"])
def test_unusual_file_names(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "images", dog=0)
    Image.new("RGB", (6, 4)).save(root / "dog" / name)
    index = tmp_path / "index.json"
    load_class_folders(root, index, CLASSES)
    (image,) = load_class_folders(root, index, CLASSES)["images"]
    assert image["file_name"] == f"dog/{name}"
