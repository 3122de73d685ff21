"""Records with a tar_index, from the archives that a configuration names, through the mapper."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import detic_ext  # noqa: F401 - registers the configuration keys
from detic_ext.data.tar_records import build_tar_reader
from ext_common.config import get_config
from ext_common.data.mapper import DetectionMapper
from ext_common.errors import DatasetError, ImageError
from tests.ext_common.tar_files import images_tar, write_tar


def test_nothing_without_the_key() -> None:
    assert build_tar_reader(get_config()) is None


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_mapper_reads_from_archives(tmp_path: Path, order: str) -> None:
    tars = [images_tar(tmp_path / "n1.tar", 2), images_tar(tmp_path / "n2.tar", 1, first=5)]
    bad = write_tar(tmp_path / "n3.tar", {"a.JPEG": b"?"})
    np.save(tmp_path / "tars.npy", np.array([tar.name for tar in (*tars, bad)]))
    cfg = get_config()
    cfg.DATALOADER.USE_TAR_DATASET = True
    cfg.DATALOADER.TARFILE_PATH = str(tmp_path / "tars.npy")
    cfg.DATALOADER.TAR_INDEX_DIR = str(tmp_path / "index")
    cfg.INPUT.FORMAT = order

    reader = build_tar_reader(cfg)
    mapper = pickle.loads(
        pickle.dumps(DetectionMapper(cfg, is_train=True, augmentations=[[]], read_record=reader))
    )

    assert reader is not None
    sample = mapper({"image_id": 3, "tar_index": 2, "height": 6, "width": 8})
    expected_HWC = reader.dataset.image(2)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), expected_HWC)
    assert reader.dataset.image_format == order
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        f"n{n}.tar.index" for n in (1, 2, 3)
    ]
    with pytest.raises(ImageError, match=r"n3\.tar:a\.JPEG"):
        mapper({"image_id": 4, "tar_index": 3})
    with pytest.raises(DatasetError, match="the archives have 4 files"):
        mapper({"image_id": 5, "tar_index": 4})


def test_a_missing_list(tmp_path: Path) -> None:
    cfg = get_config()
    cfg.DATALOADER.USE_TAR_DATASET = True
    cfg.DATALOADER.TARFILE_PATH = str(tmp_path / "tars.npy")

    with pytest.raises(DatasetError, match="list of archives cannot be read"):
        build_tar_reader(cfg)
