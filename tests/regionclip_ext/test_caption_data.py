"""Captions, COCO and tar pairs, the mapper, and the loader's exact resume."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regionclip_ext  # noqa: F401 - registers
from ext_common.config import get_config
from ext_common.data.fetching import own_randomness
from ext_common.errors import ConfigError, DatasetError
from ext_common.trainer import build_train_loader
from regionclip_ext.data.caption_text import Captions, parse_captions
from regionclip_ext.data.coco_pairs import CocoCaptionPairs
from regionclip_ext.data.pair_mapper import PairMapper
from regionclip_ext.data.pair_sources import load_pair_records, open_pairs
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize, resized_size
from regionclip_ext.data.tar_pairs import TarPairs
from regionclip_ext.data.tsv_pairs import TsvPairs
from regionclip_ext.modeling.clip_tokens import tokenize
from tests.regionclip_ext.pair_files import caption, write_coco, write_tar, write_tsv


def _config(kind: str, path: str) -> Any:
    cfg = get_config()
    cfg.DATASETS.TRAIN = ("pairs",)
    cfg.DATASETS.FACTORY_TRAIN, cfg.DATASETS.PATH_TRAIN = (kind,), (path,)
    cfg.DATALOADER.SAMPLER_TRAIN = "ImageTextPairs"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 7
    cfg.AUG.TRAIN.IMAGE_SIZE, cfg.AUG.TRAIN.MAX_SIZE = [32], 60
    return cfg


@pytest.mark.parametrize(
    ("text", "texts", "tags"),
    [
        ("a dog", ("a dog",), ()),
        ("{not json", ("{not json",), ()),
        (json.dumps({"captions": list("abcdefg")}), tuple("abcde"), ()),
        (json.dumps({"tags": "sky  sea"}), (), ("sky", "sea")),
        (json.dumps({"captions": [" x "], "tags": "y"}), ("x",), ("y",)),
    ],
    ids=["plain", "brace", "five", "tags", "both"],
)
def test_text_column(text: str, texts: tuple[str, ...], tags: tuple[str, ...]) -> None:
    assert parse_captions(text, where="row") == Captions(texts, tags)


@pytest.mark.parametrize("text", ["", " ", '{"captions": []}', '{"captions": "a"}', '{"tags": 3}'])
def test_text_column_without_caption_is_named(text: str) -> None:
    with pytest.raises(DatasetError, match="^file, row 3"):
        parse_captions(text, where="file, row 3")


def test_tags_are_shuffled_into_a_template_and_texts_are_equally_likely() -> None:
    random.seed(0)
    drawn = {Captions(tags=("sky", "sea")).draw(["see {}."]) for _ in range(50)}
    assert drawn == {"see sky sea.", "see sea sky."}
    texts = [Captions(("a", "b", "c")).draw([]) for _ in range(3000)]
    assert all(900 < texts.count(letter) < 1100 for letter in "abc")
    both = [Captions(("a",), ("b",)).draw(["{}"]) for _ in range(2000)]
    assert 900 < both.count("a") < 1100


def test_coco_pairs_have_their_captions_and_find_their_folder(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    pairs = CocoCaptionPairs(file)
    assert len(pairs) == 3  # the last image has no caption
    pair = pairs.pair(1)
    assert pair.image == tmp_path / "tiny2017" / "000000000001.png"
    assert pair.captions.texts == (caption(1), "a wall")
    (same,) = open_pairs("CocoCaptions", f"{file} + {tmp_path / 'tiny2017'}")
    assert len(same) == 3


def test_coco_captions_that_do_not_match_the_images(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    (tmp_path / "tiny2017" / "000000000002.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 images .* the first is 000000000002\.png"):
        CocoCaptionPairs(file)
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 99
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="captions of images that the file does not have"):
        CocoCaptionPairs(file)


def _rename_first(file: Path, name: str) -> None:
    """Another file_name for the first image of a captions file."""
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name
    file.write_text(json.dumps(content))


def test_coco_images_outside_their_folder_are_refused(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "coco")
    secret = tmp_path / "coco" / "secret.png"
    secret.write_bytes((tmp_path / "coco" / "tiny2017" / "000000000000.png").read_bytes())
    for name in ("../secret.png", str(secret), "a/../../secret.png", "..\\secret.png", ""):
        _rename_first(file, name)
        with pytest.raises(DatasetError, match="1 file names lead out of the folder") as caught:
            CocoCaptionPairs(file)
        assert str(file) in str(caught.value)
        assert "relative to that folder" in str(caught.value)


def test_coco_images_in_folders_are_looked_for_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_coco(tmp_path)
    images = tmp_path / "tiny2017"
    for name in ("sub/missing.png", "nowhere/000000000000.png", "000000000001.png/x.png"):
        (images / "sub").mkdir(exist_ok=True)
        _rename_first(file, name)
        with pytest.raises(DatasetError, match=f"1 of 3 images .* the first is {name}"):
            CocoCaptionPairs(file)
    (images / "sub" / "deep..er").mkdir()
    (images / "000000000000.png").rename(images / "sub" / "deep..er" / "a.png")
    _rename_first(file, "sub/deep..er/a.png")
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
    pairs = CocoCaptionPairs(file)
    assert pairs.pair(0).image == images / "sub" / "deep..er" / "a.png"
    assert sorted(listed) == [str(images), str(images / "sub" / "deep..er")]  # once each


@pytest.mark.parametrize("json_texts", [False, True], ids=["txt", "json"])
def test_tar_pairs(tmp_path: Path, json_texts: bool) -> None:
    pairs = TarPairs(write_tar(tmp_path / "a.tar", json_texts=json_texts))
    assert [pairs.pair(n).captions.texts for n in range(3)] == [(caption(n),) for n in range(3)]
    assert list(pairs.captions()) == [caption(n) for n in range(3)]


def test_tar_images_without_captions(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"1 of 3 images have no caption, the first is 0002"):
        TarPairs(write_tar(tmp_path / "a.tar", lonely=True))


def test_mapper_resizes_flips_and_draws_one_caption(tmp_path: Path) -> None:
    records = PairRecords([TsvPairs(write_tsv(tmp_path))])
    mapper = PairMapper(records, ShortSideResize(24, 60), ("{}",), flip=0.5)
    seen = set()
    plain = None
    for attempt in range(20):
        with own_randomness(1, attempt):
            sample = mapper(records[2])
        assert sample["image"].shape == (3, 24, 32)
        assert sample["image"].dtype == torch.uint8
        assert sample["caption"] in (caption(2), "a wall")
        assert torch.equal(sample["tokens"], tokenize([sample["caption"]])[0])
        plain = sample["image"] if plain is None else plain
        flipped = not torch.equal(sample["image"], plain)
        assert torch.equal(sample["image"].flip(2) if flipped else sample["image"], plain)
        seen.add((flipped, sample["caption"]))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [((800, 5000), (800, 5000)), ((5000, 800), (5000, 800)), ((3, 4000), (1, 1333))],
)
def test_resize_rule_at_its_borders(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, short=800, longest=1333) == expected


def test_loader_goes_on_with_the_batches_of_an_uninterrupted_run(tmp_path: Path) -> None:
    write_tsv(tmp_path / "tsv", 7)
    cfg = _config("CLIPImgTxtPairTSVDataset", str(tmp_path / "tsv"))

    def batches(loader: Any, count: int) -> list[list[tuple[str, str, bytes]]]:
        iterator = iter(loader)
        return [
            [(s["image_id"], s["caption"], s["image"].numpy().tobytes()) for s in next(iterator)]
            for _ in range(count)
        ]

    whole = batches(build_train_loader(cfg), 5)
    first = build_train_loader(cfg)
    assert batches(first, 2) == whole[:2]
    second = build_train_loader(cfg)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert batches(second, 3) == whole[2:]
    order = [key for batch in whole for key, _, _ in batch]
    assert len(set(order[:7])) == 7
    cfg.DATALOADER.NUM_WORKERS = 2
    assert batches(build_train_loader(cfg), 3) == whole[:3]


def test_the_loader_has_the_time_limit_of_the_configuration(tmp_path: Path) -> None:
    write_tsv(tmp_path / "tsv", 3)
    cfg = _config("CLIPImgTxtPairTSVDataset", str(tmp_path / "tsv"))
    cfg.DATALOADER.TIMEOUT_SECONDS = 12.0
    assert build_train_loader(cfg).timeout == 12.0


def test_several_sources_are_numbered_through(tmp_path: Path) -> None:
    write_tsv(tmp_path / "tsv", 2)
    write_tar(tmp_path / "a.tar")
    cfg = _config("CLIPImgTxtPairTSVDataset", str(tmp_path / "tsv"))
    cfg.DATASETS.TRAIN += ("tars",)
    cfg.DATASETS.FACTORY_TRAIN += ("TarCaptions",)
    cfg.DATASETS.PATH_TRAIN += (f"{tmp_path / 'a.tar'}",)
    records = load_pair_records(cfg)
    keys = [records.read(place).key for place in range(len(records))]
    assert keys == [
        "train.images.tsv:key0",
        "train.images.tsv:key1",
        "a.tar:0000.png",
        "a.tar:0001.png",
        "a.tar:0002.png",
    ]
    assert list(records.keys()) == keys
    assert np.unique([records[place]["image_id"] for place in range(5)]).tolist() == list(range(5))


def test_entries_that_do_not_fit_are_named(tmp_path: Path) -> None:
    cfg = _config("Unknown", str(tmp_path))
    with pytest.raises(ConfigError, match="FACTORY_TRAIN.*'Unknown'.*CocoCaptions"):
        load_pair_records(cfg)
    cfg.DATASETS.PATH_TRAIN = ()
    with pytest.raises(ConfigError, match="1 names, 1 kinds and 0 paths"):
        load_pair_records(cfg)
