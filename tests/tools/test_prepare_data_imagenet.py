"""tools/prepare_data.py on ImageNet archives and class lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ext_common.data.lvis_json import load_lvis_json
from ext_common.tar_list import read_tar_counts, read_tar_list
from ext_common.tar_shards import TarDataset
from ext_common.text_encoder import HashTextEncoder
from ext_common.vocabulary import Vocabulary
from tests.ext_common.annotation_files import content, write
from tests.ext_common.tar_files import images_tar, jpeg, write_tar
from tests.tools.prepare_runs import LVIS_ID, TOOL, lvis_file, read, run

DOG, CAT = "n02084071", "n02121620"
SYNSETS = (
    "wnid\tsynset\tlemmas\tdef\n"
    f"{DOG}\tdog.n.01\tdog,domestic_dog\ta member of Canis\n"
    f"{CAT}\tcat.n.01\tcat,true_cat\tfeline mammal\n"
    "n00000009\tspud.n.99\tspud\tnot in LVIS\n"
)


def test_imagenet_lvis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_tar(tmp_path / "tars" / f"{DOG}.tar", 2, gzipped=(1,))
    (tmp_path / "synsets.tsv").write_text(SYNSETS)
    (tmp_path / "wnids.txt").write_text(f"{DOG}\n{CAT}\n")
    root, output = tmp_path / "ImageNet-LVIS", tmp_path / "info.json"

    words = ["--wnids", tmp_path / "wnids.txt", "--synsets", tmp_path / "synsets.tsv"]
    words += ["--images", root, "--output", output, "--unpack", tmp_path / "tars"]
    assert run("imagenet-lvis", *words) == 0

    found = read(output)
    assert [image["file_name"] for image in found["images"]] == [
        f"{DOG}/{DOG}_{n}.JPEG" for n in (0, 1)
    ]
    assert found["images"][1]["pos_category_ids"] == [LVIS_ID["dog.n.01"]]
    with Image.open(root / DOG / f"{DOG}_1.JPEG") as image:
        assert image.size == (found["images"][1]["width"], found["images"][1]["height"])
    assert f"1 of 2 synsets are missing: {CAT}" in capsys.readouterr().out


def imagenet_21k_words(tmp_path: Path) -> list[str | Path]:
    images_tar(tmp_path / "tars" / f"{DOG}.tar", 2, gzipped=(1,))
    write_tar(tmp_path / "tars" / f"{CAT}.tar", {"a.JPEG": jpeg(1), "b.JPEG": b"?"})
    write_tar(tmp_path / "tars" / "n00000009.tar", {"c.JPEG": jpeg(3)})
    (tmp_path / "synsets.tsv").write_text(SYNSETS)
    return [
        "imagenet-21k",
        *("--tars", tmp_path / "tars"),
        *("--synsets", tmp_path / "synsets.tsv"),
        *("--output", tmp_path / "imagenet-22k_image_info.json"),
        *("--index-dir", tmp_path / "index"),
        *("--tar-list", tmp_path / "meta" / "tar_files.npy"),
    ]


def test_imagenet_21k_and_the_merged_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = imagenet_21k_words(tmp_path)
    output = tmp_path / "imagenet-22k_image_info.json"
    (tmp_path / "wnids.txt").write_text(f"{DOG} n00000005")

    assert run(*words, "--workers", "1", "--wnids", tmp_path / "wnids.txt") == 1
    assert "1 synsets without an archive: n00000005" in capsys.readouterr().err
    assert run(*words, "--workers", "1") == 1  # a bad file
    assert (
        f"1 files that are no images: {tmp_path}/tars/{CAT}.tar:b.JPEG" in capsys.readouterr().err
    )
    assert len(list((tmp_path / "imagenet-22k_image_info.parts").iterdir())) == 3  # kept
    assert run(*words, "--workers", "1", "--bad-files", "skip") == 0
    assert not (tmp_path / "imagenet-22k_image_info.parts").exists()

    tars = read_tar_list(tmp_path / "meta" / "tar_files.npy")
    counts = read_tar_counts(tmp_path / "meta" / "tar_files.npy")
    assert counts == [1, 2, 2]
    dataset = TarDataset(tars, counts=counts, index_dir=tmp_path / "index")
    records = load_lvis_json(output, "")
    assert [record["tar_index"] for record in records] == [0, 1, 2, 3]
    for record in records:
        sample = dataset[record["tar_index"]]
        assert sample is not None
        assert sample.image_HWC.shape[:2] == (record["height"], record["width"])
        assert [sample.label] == record["pos_category_ids"]

    lvis = lvis_file(tmp_path / "lvis_v1_train.json")
    names = tmp_path / "classes.json"
    words = ["--lvis", lvis, "--imagenet", output, "--save-categories", names]
    assert run("merge-21k", *words) == 0
    merged = read(tmp_path / "imagenet-22k_image_info_lvis-22k.json")
    assert [image["pos_category_ids"] for image in merged["images"]] == [
        [1204], [LVIS_ID["dog.n.01"]], [LVIS_ID["dog.n.01"]], [LVIS_ID["cat.n.01"]],
    ]  # fmt: skip
    assert read(names)["categories"] == merged["categories"]
    assert len(merged["categories"]) == 1204
    assert read(tmp_path / "lvis_v1_train_lvis-22k.json")["categories"] == merged["categories"]
    assert run("merge-21k", *words, "--mark", "x", "--not-save-lvis") == 0
    assert (tmp_path / "imagenet-22k_image_info_x.json").is_file()
    assert not (tmp_path / "lvis_v1_train_x.json").exists()


def test_imagenet_21k_in_several_processes(tmp_path: Path) -> None:
    words = [*imagenet_21k_words(tmp_path), "--workers", "2", "--bad-files", "skip"]

    done = subprocess.run(
        [sys.executable, str(TOOL), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "imagenet-22k_image_info.json")["images"]) == 4
    assert "4 images, 0 annotations, 3 categories" in done.stdout


def test_tar_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = images_tar(tmp_path / "tars" / "a.tar", 3)
    assert run("tar-index", "--tars", tmp_path / "tars") == 0
    assert "1 archives, 3 files" in capsys.readouterr().out
    assert (tmp_path / "tars" / "a.tar.index").is_file()

    os.truncate(tar, 2048)
    (tmp_path / "tars" / "b.tar").write_text("?")
    (tmp_path / "wnids.txt").write_text("a c")
    words = ["--wnids", tmp_path / "wnids.txt", "--index-dir", tmp_path / "index"]
    assert run("tar-index", "--tars", tmp_path / "tars", *words) == 1
    text = capsys.readouterr()
    assert f"1 cut off: {tar}" in text.out
    assert "1 missing: c" in text.out
    assert "1 unusable" in text.out
    assert text.err.splitlines()[-1].startswith("prepare_data: error: ")


def test_embeddings(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", content([(9, 9)], classes=("hot_dog", "cat_(animal)")))
    words = ["embeddings", "--ann", source, "--model", "hash", "--dim", "16"]
    words += ["--cache", tmp_path / "cache"]
    encoder = HashTextEncoder(16)

    assert run(*words, "--output", tmp_path / "a.npy", "--float16") == 0
    rows = np.load(tmp_path / "a.npy")
    assert rows.dtype == np.float16
    expected = encoder.encode(["a hot_dog", "a cat_(animal)"]).numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-3)
    assert Vocabulary.parse(tmp_path / "a.npy").names == ("hot_dog", "cat_(animal)")

    assert run(*words, "--output", tmp_path / "b.npz", "--prompt", "photo", "--fix-space") == 0
    kept = Vocabulary.parse(tmp_path / "b.npz")
    assert kept.prompts == ("a photo of a hot dog", "a photo of a cat (animal)")
    assert kept.encoder_id == encoder.encoder_id
    assert (tmp_path / "cache").is_dir()

    names = ["embeddings", "--names", 'cat, "lamp, floor"', "--model", "hash"]
    assert run(*names, "--output", tmp_path / "c.npz") == 0
    assert Vocabulary.parse(tmp_path / "c.npz").names == ("cat", "lamp, floor")


def test_embeddings_with_synonyms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "tom", "synset": "cat.n.01", "synonyms": ["tom"]}],
    }
    source = write(tmp_path / "a.json", value)
    (tmp_path / "synsets.tsv").write_text(SYNSETS)
    words = ["embeddings", "--ann", source, "--model", "hash", "--dim", "16", "--prompt", "none"]
    words += ["--output", tmp_path / "a.npy", "--avg-synonyms"]

    assert run(*words, "--use-wn-name", tmp_path / "synsets.tsv") == 0
    encoded = HashTextEncoder(16).encode(["cat", "true_cat"]).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "a.npy")[0], encoded.mean(axis=0), atol=1e-6)

    assert run(*words[:-3], "--output", tmp_path / "a.txt") == 1
    assert "use .npy or .npz" in capsys.readouterr().err
