"""Which names the images of a dataset have in a file of proposals, and that the two fit together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import register_pascal_voc
from PIL import Image

from ext_common.errors import ConfigError, DatasetError
from ext_common.images import BadSamplePolicy
from soco_ext.data.proposal_lookup import NamedImage, ProposalLookup
from soco_ext.data.view_options import ProposalOptions
from tests.ext_common.annotation_files import content, write
from tests.soco_ext.scenes import scene, write_scenes
from tests.soco_ext.test_data_loader import SIZE, config, proposals, take
from tests.soco_ext.test_voc import write_voc

NAME = "views_registered_elsewhere"
OTHER = "views_of_another_folder"


@pytest.fixture(autouse=True)
def _registered_here_only() -> Iterator[None]:
    yield
    for name in (NAME, OTHER):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def registered(files: list[str], name: str = NAME, **metadata: str) -> None:
    """A dataset as detectron2 or a user registers it."""
    DatasetCatalog.register(name, lambda: [{"file_name": f, "image_id": f} for f in files])
    MetadataCatalog.get(name).set(**metadata)


def seen(tmp_path: Path, boxes: Path | None, *words: Any) -> set[str]:
    """Files of one epoch of two images, none skipped."""
    cfg = config(tmp_path, boxes, *words)
    cfg.DATASETS.TRAIN = (NAME,)
    return {Path(sample["file_name"]).name for sample in take(cfg, 1)[0]}


def test_pascal_voc_with_a_file_and_without(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007")
    register_pascal_voc(NAME, str(tmp_path / "VOC2007"), "trainval", 2007)
    for source in ("random", "whole_image"):
        found = seen(tmp_path, None, "SOCO.PROPOSALS.SOURCE", source)
        assert found == {"000.jpg", "001.jpg"}
    boxes = proposals(tmp_path, ["JPEGImages/000.jpg", "JPEGImages/001.jpg"])
    assert seen(tmp_path, boxes) == {"000.jpg", "001.jpg"}


@pytest.mark.parametrize("key", ["image_root", "image_dir", ""])
def test_names_start_at_the_datasets_folder(tmp_path: Path, key: str) -> None:
    names = write_scenes(tmp_path / "data", 2)
    folder = str(tmp_path / "data")
    registered([f"{folder}/{name}" for name in names], **({key: f"{folder}/"} if key else {}))
    # without a key: the folder that the folders n0000 and n0001 have in common
    assert seen(tmp_path, proposals(tmp_path, names)) == {Path(name).name for name in names}


def test_two_folders_do_not_share_boxes(tmp_path: Path) -> None:
    for name, folder in ((NAME, "a"), (OTHER, "b")):
        names = write_scenes(tmp_path / folder, 2)
        root = str(tmp_path / folder)
        registered([f"{root}/{image}" for image in names], name, image_root=root)
    boxes = proposals(tmp_path, names)
    cfg = config(tmp_path, boxes)
    cfg.DATASETS.TRAIN = (NAME, OTHER)
    with pytest.raises(DatasetError, match=rf"/a .*{NAME}.* and in .*/b .*{OTHER}.*holds both"):
        take(cfg, 1)
    # from the folder above, each has its own
    for name in (NAME, OTHER):
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(image_root=str(tmp_path))
    both = proposals(tmp_path, [f"{folder}/{image}" for folder in "ab" for image in names])
    cfg.SOCO.PROPOSALS.FILE = str(both)
    cfg.SOLVER.IMS_PER_BATCH = 4
    assert len({sample["file_name"] for sample in take(cfg, 1)[0]}) == 4
    # the same folder twice is no mistake
    cfg.DATASETS.TRAIN = (NAME, NAME)
    assert take(cfg, 1)


def test_images_without_a_common_folder(tmp_path: Path) -> None:
    registered(["one/1.png", "two/2.png"])
    with pytest.raises(DatasetError, match=rf"{NAME}.*no folder in common.*image_root"):
        seen(tmp_path, proposals(tmp_path, ["1.png"]))
    # and one whose folder is not where its images are
    MetadataCatalog.get(NAME).set(image_root="/three")
    with pytest.raises(DatasetError, match=r"one/1.png.*not below.*/three.*image_root"):
        seen(tmp_path, proposals(tmp_path, ["1.png"]), "INPUT.BAD_SAMPLE_POLICY", "skip")


def lookup_of(path: Path, missing: str = "error") -> ProposalLookup:
    return ProposalLookup(ProposalOptions(file=str(path), missing=missing))


def test_every_image_is_looked_up(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(1500)]
    path = proposals(tmp_path, [name for name in names if name != "1001.png"])
    with pytest.raises(ConfigError, match=r"1 of 1500 images: 1001.png.*MISSING"):
        lookup_of(path).check(names)
    lookup_of(path, "random").check(names)
    turned = [NamedImage(name, SIZE[::-1] if name == "7.png" else SIZE) for name in names]
    with pytest.raises(ConfigError, match=r"7.png: the image is 60 x 80.*of 80 x 60.*again"):
        lookup_of(path, "random").check_images(turned)


def test_sizes_of_records_are_compared_before_training(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in (1, 2, 3):
        Image.fromarray(scene(number)).save(tmp_path / "data" / f"{number}.png")
    names = ["1.png", "2.png", "3.png"]
    write(tmp_path / "ann.json", content([SIZE, SIZE, SIZE]))
    boxes = proposals(tmp_path, names, size=(30, 40))
    cfg = config(tmp_path, boxes, kind="coco", json="ann.json")
    with pytest.raises(ConfigError, match=r"80 x 60 pixels.*of one of 40 x 30"):
        take(cfg, 0)
    # a record that is wrong about its file, as where images were shrunk, does not count
    write(tmp_path / "ann.json", content([SIZE, (120, 160), SIZE]))
    proposals(tmp_path, names)
    assert len(take(cfg, 1)) == 1


def test_what_a_file_lacks_is_no_bad_sample(tmp_path: Path) -> None:
    lookup = lookup_of(proposals(tmp_path, ["1.png"]))
    policy = BadSamplePolicy("skip")
    draw = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"no proposals for the image: 2.png.*MISSING"):
        policy.attempt("2.png", lambda: lookup("2.png", SIZE, draw))
    with pytest.raises(ConfigError, match=r"80 x 61 pixels.*again"):
        policy.attempt("1.png", lambda: lookup("1.png", (61, 80), draw))
    assert policy.skipped == 0
