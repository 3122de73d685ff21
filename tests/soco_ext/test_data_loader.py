from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

import soco_ext  # noqa: F401 - registers keys
from ext_common.config import get_config
from ext_common.data.box_file import ImageBoxes
from ext_common.data.dataset_registry import register_from_config
from ext_common.data.unlabelled_images import images_of_folder
from ext_common.errors import ConfigError, DatasetError, ImageError
from ext_common.registries import TRAIN_LOADER_REGISTRY
from soco_ext.data import loader as view_loader
from soco_ext.proposals.proposal_file import write_proposals
from tests.ext_common.annotation_files import content, write
from tests.ext_common.tar_files import write_tar
from tests.soco_ext.scenes import scene, write_scenes

SIZE = (60, 80)


def proposals(folder: Path, names: list[str], count: int = 6, size: tuple[int, int] = SIZE) -> Path:
    """A file with the same boxes for every image."""
    draw = np.random.default_rng(0)
    low = draw.integers(0, 30, (count, 2))
    boxes = np.concatenate([low, low + draw.integers(20, 29, (count, 2))], axis=1)
    path = folder / "boxes"
    write_proposals(path, [ImageBoxes(name, size, boxes) for name in names], {})
    return path


def config(
    folder: Path, boxes: Path | None, *words: Any, kind: str = "image_folder", **fields: str
) -> CfgNode:
    """A configuration for the dataset ``<folder>/data``, whose name is the folder's."""
    name = f"views_{os.path.basename(folder)}_{kind}"
    entry = {"type": kind, "images": "data", **fields}
    write(folder / f"{kind}.yaml", {"datasets": {name: entry}})  # JSON is YAML
    cfg = get_config()
    cfg.DATASETS.REGISTRY = [str(folder / f"{kind}.yaml")]
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.SAMPLER_TRAIN = "SoCoViews"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 7
    cfg.INPUT.BAD_SAMPLE_POLICY = "raise"
    cfg.SOCO.VIEWS.IMAGE_SIZE = 24
    cfg.SOCO.PROPOSALS.FILE = str(boxes or "")
    cfg.merge_from_list([str(word) if isinstance(word, Path) else word for word in words])
    register_from_config(cfg)
    return cfg


def take(cfg: CfgNode, count: int) -> list[list[dict[str, Any]]]:
    build = TRAIN_LOADER_REGISTRY.get(cfg.DATALOADER.SAMPLER_TRAIN)
    return list(islice(build(cfg), count))


def assert_equal(one: list[Any], two: list[Any]) -> None:
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        for a, b in zip(first, second, strict=True):
            assert a["file_name"] == b["file_name"]
            assert all(map(torch.equal, a["views"], b["views"]))
            for pair_a, pair_b in zip(a["pairs"], b["pairs"], strict=True):
                assert all(map(torch.equal, pair_a["boxes"], pair_b["boxes"]))
                assert all(map(torch.equal, pair_a["levels"], pair_b["levels"]))


def test_a_folder_of_images(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 5)
    cfg = config(tmp_path, proposals(tmp_path, names))
    batches = take(cfg, 5)
    seen = [sample["file_name"] for batch in batches for sample in batch]
    # one epoch of five images, and the next
    assert sorted(seen[:5]) == sorted(seen[5:]) == [str(tmp_path / "data" / n) for n in names]
    sample = batches[0][0]
    assert [tuple(v.shape) for v in sample["views"]] == [(3, 24, 24), (3, 24, 24), (3, 12, 12)]
    assert set(sample) == {"views", "pairs", "image_id", "file_name"}
    ids = torch.cat([boxes[:, 4] for pair in sample["pairs"] for boxes in pair["boxes"]])
    assert set(ids.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}


def test_workers_and_resuming_do_not_change_a_sample(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 5)
    cfg = config(tmp_path, proposals(tmp_path, names))
    whole = take(cfg, 6)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_equal(take(cfg, 6), whole)
    loader = view_loader.build_view_loader(cfg)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = loader.state_dict()
    cfg.SEED = 99
    resumed = view_loader.build_view_loader(cfg)
    resumed.load_state_dict(state)
    assert_equal(list(islice(resumed, 4)), whole[2:])
    with pytest.raises(AssertionError):
        assert_equal(take(cfg, 6), whole)


def test_coco_files_and_archives_give_the_same_samples(tmp_path: Path) -> None:
    value = content([SIZE, SIZE, SIZE])
    for number in (1, 2, 3):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(scene(number)).save(tmp_path / "data" / f"{number}.png")
    write(tmp_path / "ann.json", value)
    names = ["1.png", "2.png", "3.png"]
    boxes = proposals(tmp_path, names)
    loose = take(config(tmp_path, boxes), 3)
    coco = take(config(tmp_path, boxes, kind="coco", json="ann.json"), 3)
    assert_equal(loose, coco)
    members = {name: (tmp_path / "data" / name).read_bytes() for name in names}
    packed = tmp_path / "packed"
    write_tar(packed / "data" / "a.tar", members)
    cfg = config(packed, proposals(packed, [f"a.tar/{name}" for name in names]), kind="image_tars")
    for one, two in zip(loose, take(cfg, 3), strict=True):
        for a, b in zip(one, two, strict=True):
            assert all(map(torch.equal, a["views"], b["views"]))


def test_random_boxes_and_whole_images_need_no_file(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 2, size_hw=(200, 200))
    cfg = config(tmp_path, None, "SOCO.PROPOSALS.SOURCE", "whole_image")
    for sample in take(cfg, 1)[0]:
        assert all((b[:, 4] == 1).all() for pair in sample["pairs"] for b in pair["boxes"])
    cfg.SOCO.PROPOSALS.SOURCE = "random"
    first, again = take(cfg, 3), take(cfg, 3)
    assert_equal(first, again)
    ids = [b[:, 4] for batch in first for s in batch for p in s["pairs"] for b in p["boxes"]]
    assert len(torch.cat(ids).unique()) > 4
    cfg.SOCO.PROPOSALS.SOURCE = "file"
    with pytest.raises(ConfigError, match="no file of proposals.*soco-proposals"):
        take(cfg, 1)


def test_a_filter_is_applied_when_boxes_are_read(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 2)
    cfg = config(tmp_path, proposals(tmp_path, names), "SOCO.PROPOSALS.STRATEGY", "ratio3")
    # no box has 32 pixels: what is left is the whole image
    for sample in take(cfg, 1)[0]:
        assert all((b[:, 4] == 1).all() for pair in sample["pairs"] for b in pair["boxes"])
    cfg.SOCO.PROPOSALS.STRATEGY = "ratio"
    with pytest.raises(ConfigError, match="unknown filter strategy"):
        take(cfg, 1)


def test_a_file_of_another_folder_or_with_images_missing(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 4)
    cfg = config(tmp_path, proposals(tmp_path, ["other/1.png"]))
    with pytest.raises(ConfigError, match=r"none of the training images.*other/1.png.*n0000"):
        take(cfg, 1)
    proposals(tmp_path, names[1:])
    with pytest.raises(ConfigError, match=r"1 of 4 images.*n0000/0.png.*MISSING"):
        take(cfg, 1)
    cfg.SOCO.PROPOSALS.MISSING = "whole_image"
    ids = {
        sample["file_name"]: sample["pairs"][0]["boxes"][0][:, 4].unique().tolist()
        for batch in take(cfg, 2)
        for sample in batch
    }
    assert ids[str(tmp_path / "data" / names[0])] == [1.0]
    assert len(ids) == 4
    proposals(tmp_path, names, size=(61, 80))
    cfg.INPUT.BAD_SAMPLE_POLICY = "skip"  # the file is wrong, not the images
    with pytest.raises(ConfigError, match=r"80 x 60 pixels.*80 x 61.*again"):
        take(cfg, 1)


def test_images_without_proposals_and_fewer_than_k(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 2)
    for count in (0, 1, 3):
        words = ("SOCO.VIEWS.SELECT_K", 8, "SOCO.VIEWS.PADDING_K", 8)
        cfg = config(tmp_path, proposals(tmp_path, names, count), *words)
        for sample in take(cfg, 1)[0]:
            for pair in sample["pairs"]:
                for boxes in pair["boxes"]:
                    assert boxes.shape == (8, 5)
                    assert set(boxes[:, 4].tolist()) <= set(range(1, max(count, 1) + 1))


def test_grey_cmyk_and_one_pixel_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(scene(1)).convert("L").save(data / "grey.jpg")
    Image.fromarray(scene(2)).convert("CMYK").save(data / "cmyk.jpg")
    Image.fromarray(scene(3, (1, 1))).save(data / "one.png")
    Image.fromarray(scene(4, (1, 30))).save(data / "row.png")
    cfg = config(tmp_path, None, "SOCO.PROPOSALS.SOURCE", "random")
    for sample in (sample for batch in take(cfg, 2) for sample in batch):
        assert [v.shape[-1] for v in sample["views"]] == [24, 24, 12]
        assert all(torch.isfinite(v).all() for v in sample["views"])


def test_bad_images_follow_the_policy(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 4)
    (tmp_path / "data" / names[2]).write_bytes(b"no image")
    cfg = config(tmp_path, proposals(tmp_path, names))
    with pytest.raises(ImageError, match=names[2]):
        take(cfg, 2)
    cfg.INPUT.BAD_SAMPLE_POLICY = "skip"
    seen = {sample["file_name"] for batch in take(cfg, 4) for sample in batch}
    assert seen == {str(tmp_path / "data" / n) for n in names if n != names[2]}


def test_datasets_that_cannot_be_used(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 2)
    cfg = config(tmp_path, proposals(tmp_path, names), "SOLVER.IMS_PER_BATCH", 3)
    with pytest.raises(DatasetError, match="2 images are fewer than a batch of 3"):
        take(cfg, 1)
    cfg.DATASETS.TRAIN = ("views_unknown",)
    with pytest.raises(DatasetError, match="unknown dataset"):
        take(cfg, 1)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match="no training datasets"):
        take(cfg, 1)


def test_folders_are_listed_once_whatever_links_they_have(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "data", 3)
    (tmp_path / "data" / "n0000" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / ".hidden.png").write_bytes(b"")
    listed = images_of_folder(tmp_path / "data")
    assert [record["image_name"] for record in listed] == names
    assert listed[-1]["file_name"] == str(tmp_path / "data" / names[-1])
    assert [record["image_id"] for record in listed[1:]] == [1, 2]
