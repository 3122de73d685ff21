"""Cases 19 to 23 of docs/reliability.md: tar archives, and files that cannot be read in time."""

from __future__ import annotations

import gzip
import logging
import multiprocessing
import os
import tarfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detic_ext.data  # noqa: F401 - registers the sampler
from detic_ext.data.multi_dataset_loader import SAMPLER_NAME, build_multi_dataset_loader
from ext_common.config import get_config
from ext_common.data import mapper as mapper_module
from ext_common.data.batching import BatchPlan, batch_per_process
from ext_common.data.dataset_registry import register_dataset, unregister
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.fetching import SampleFetcher
from ext_common.data.loader import TrainLoader
from ext_common.data.mapper import DetectionMapper
from ext_common.data.sampling import PermutationStream
from ext_common.errors import ConfigError, DatasetError
from ext_common.tar_list import write_tar_list
from ext_common.tar_shards import TarDataset, TarRecordReader
from tests.child_processes import left_behind
from tests.dist.tiny_training import write_run
from tests.ext_common.annotation_files import content, write
from tests.ext_common.tar_files import add, images_tar, jpeg, write_tar
from tests.faults.data_runs import final_line, train
from tools import prepare_data

NAME = "fault_tars"
SIZE = (6, 8)
IN_EACH = 4


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[Path]]:
    """n0.tar and n1.tar with four pictures each, their list, and the dataset of all of them."""
    tars = []
    for tar in range(2):
        members = {f"{tar}_{n}.JPEG": jpeg(IN_EACH * tar + n, SIZE) for n in range(IN_EACH)}
        tars.append(write_tar(tmp_path / f"n{tar}.tar", members))
    write_tar_list(tmp_path / "tars.npy", tars, [IN_EACH] * 2)
    tags = content([SIZE] * (2 * IN_EACH))
    for index, image in enumerate(tags["images"]):
        del image["file_name"]
        image.update(tar_index=index, pos_category_ids=[10 + index // IN_EACH])
    path = write(tmp_path / "tags.json", tags)
    register_dataset(DatasetSpec(NAME, "lvis", images=str(tmp_path), json=str(path)))
    yield tars
    unregister(NAME)


def loader(folder: Path, workers: int = 0) -> TrainLoader:
    """The loader that trains Detic on image labels in archives; bad samples are skipped."""
    cfg = get_config()
    cfg.SEED = 3
    cfg.MODEL.MASK_ON = False
    cfg.WITH_IMAGE_LABELS = True
    cfg.DATASETS.TRAIN = (NAME,)
    options = cfg.DATALOADER
    options.SAMPLER_TRAIN = SAMPLER_NAME
    options.NUM_WORKERS = workers
    options.DATASET_RATIO = [1]
    options.USE_RFS = [False]
    options.DATASET_ANN = ["image"]
    options.FILTER_EMPTY_ANNOTATIONS = False
    options.USE_TAR_DATASET = True
    options.TARFILE_PATH = str(folder / "tars.npy")
    options.TAR_INDEX_DIR = str(folder / "index")
    cfg.INPUT.MIN_SIZE_TRAIN = (8,)
    cfg.SOLVER.IMS_PER_BATCH = 2
    found = build_multi_dataset_loader(cfg)
    found.policy.grace = 1000  # a tiny dataset meets its bad files often
    return found


def numbers(batches: Any, count: int) -> list[list[int]]:
    return [[sample["tar_index"] for sample in batch] for batch in islice(batches, count)]


def check_tars(folder: Path) -> int:
    words = ["--json", str(folder / "tags.json"), "--tars", str(folder / "tars.npy")]
    return prepare_data.main(["check", *words, "--jobs", "1"])


def test_case_19_a_truncated_tar_is_used_up_to_the_cut(
    shards: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tarfile.open(shards[0]) as tar:
        member = tar.getmembers()[2]
    os.truncate(shards[0], member.offset_data + member.size // 2)

    with caplog.at_level(logging.WARNING):
        whole = numbers(loader(tmp_path), 30)
    assert {number for batch in whole for number in batch} == {0, 1, 4, 5, 6, 7}
    warnings = [r.getMessage() for r in caplog.records if "cut off at byte" in r.getMessage()]
    assert len(warnings) == 1
    assert f"n0.tar: cut off at byte {member.offset}; the 2 files before it" in warnings[0]

    interrupted = loader(tmp_path, workers=2)
    assert numbers(interrupted, 7) == whole[:7]
    resumed = loader(tmp_path)
    resumed.load_state_dict(interrupted.state_dict())
    assert numbers(resumed, 23) == whole[7:]

    capsys.readouterr()
    assert prepare_data.main(["tar-index", "--tars", str(tmp_path / "tars.npy")]) == 1
    assert "1 archives are cut off, 0 missing" in final_line(capsys.readouterr().err)
    assert check_tars(tmp_path) == 1
    captured = capsys.readouterr()
    assert "file-unreadable" in captured.out
    assert "the archive is cut off before file 2, of which it has 2" in captured.out
    assert "2 problems" in final_line(captured.err)


def test_case_20_unusual_members_have_a_defined_meaning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long_name = "/".join(["very" * 20] * 4) + "/1.jpg"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "twice.jpg", jpeg(0, SIZE))
        add(tar, long_name, jpeg(1, SIZE))
        add(tar, "packed.jpg", gzip.compress(jpeg(2, SIZE)))
        add(tar, "twice.jpg", jpeg(3, SIZE))
    dataset = TarDataset([path, write_tar(tmp_path / "none.tar", {})])
    # folders are no files, of equal names the last counts, gzip is unpacked
    names = [dataset.name(number) for number in range(len(dataset))]
    assert names == [long_name, "packed.jpg", "twice.jpg"]
    assert [dataset.read(n) for n in range(3)] == [jpeg(seed, SIZE) for seed in (1, 2, 3)]
    assert "a.tar: 1 names stand more than once, the last counts: twice.jpg" in caplog.text
    assert "none.tar: the archive has no files" in caplog.text


@pytest.mark.parametrize("kind", ["symbolic", "hard", "escape"])
def test_case_20_links_and_escapes_are_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images_tar(tmp_path / "a.tar", 1)
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("../secret.jpg" if kind == "escape" else "link.jpg")
        if kind != "escape":
            member.type = tarfile.SYMTYPE if kind == "symbolic" else tarfile.LNKTYPE
            member.linkname = "/etc/passwd"
        tar.addfile(member)
    assert prepare_data.main(["tar-index", "--tars", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert f"a.tar: 1 members that are refused: {member.name} (" in captured.out
    assert "0 archives are cut off, 0 missing, 1 unusable" in final_line(captured.err)
    with pytest.raises(DatasetError, match="1 members that are refused"):
        TarDataset([path])


def test_case_21_an_index_that_is_older_than_its_tar_gives_no_wrong_bytes(tmp_path: Path) -> None:
    path = images_tar(tmp_path / "a.tar", 3)
    dataset = TarDataset([path])
    assert dataset.read(2) == jpeg(2, (8, 8))
    before = path.stat()
    # of the same size and time: other names, other places
    members = {f"b_{n}.JPEG": jpeg(2 - n, (8 - n, 8)) for n in range(3)}
    write_tar(path, members)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    fresh = TarDataset([path])  # the next start
    assert [fresh.read(number) for number in range(3)] == list(members.values())
    assert [fresh.name(number) for number in range(3)] == list(members)
    # a run that is under way stops
    with pytest.raises(DatasetError, match="not the one that was indexed"):
        dataset.read(2)


def test_case_21_a_published_index_of_another_tar_is_an_error(tmp_path: Path) -> None:
    path = images_tar(tmp_path / "a.tar", 3)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        end = tar.offset
    names, starts = [m.name for m in members], [m.offset for m in members]
    np.save(tmp_path / "a_names.npy", np.array(names))
    np.save(tmp_path / "a_offsets.npy", np.array([*starts, end]) // 512)
    assert TarDataset([path]).read(1) == jpeg(1, (7, 8))
    write_tar(path, {"first.JPEG": jpeg(9, (90, 90)), names[1]: jpeg(1), names[2]: jpeg(2)})
    with pytest.raises(DatasetError, match=r"a_offsets\.npy: the index has 'a_1\.JPEG' at byte"):
        TarDataset([path]).read(1)


def test_case_22_shards_need_not_fit_workers_and_processes(tmp_path: Path) -> None:
    dataset = TarDataset([images_tar(tmp_path / "only.tar", 4)], image_format="BGR")
    rows = [
        {"tar_index": number, "image_id": number, "height": 6 + number, "width": 8}
        for number in range(4)
    ]

    def one_pass(processes: int, workers: int) -> list[int]:
        seen = []
        for rank in range(processes):
            mapper = DetectionMapper(
                is_train=True, augmentations=[[]], read_record=TarRecordReader(dataset)
            )
            plan = BatchPlan(PermutationStream(4, 0), np.zeros(4, int), [1], processes=processes)
            own = TrainLoader(
                SampleFetcher(rows, mapper, seed=0), plan, rank=rank, num_workers=workers
            )
            seen += [number for batch in numbers(own, 4 // processes) for number in batch]
        return sorted(seen)

    # one archive for 2 x 2 readers: every picture comes once in a pass, and nobody waits
    assert one_pass(1, 0) == one_pass(2, 2) == one_pass(4, 1) == [0, 1, 2, 3]
    with pytest.raises(ConfigError) as caught:
        batch_per_process(3, 4)
    assert "IMS_PER_BATCH 3 is less than one image for each of 4 processes" in str(caught.value)
    assert "set it to a multiple of 4, or start fewer processes" in str(caught.value)


def test_case_23_a_read_that_stalls_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = mapper_module.read_image

    def stalling(source: Any, **options: Any) -> Any:
        if str(source).endswith("3.png"):
            time.sleep(3600)
        return read(source, **options)

    run = write_run(tmp_path)
    monkeypatch.setattr(mapper_module, "read_image", stalling)
    others = multiprocessing.active_children()
    started = time.monotonic()
    assert train(run, "DATALOADER.NUM_WORKERS", "2", "DATALOADER.TIMEOUT_SECONDS", "5") == 1
    assert time.monotonic() - started < 600
    line = final_line(capsys.readouterr().err)
    assert "images/3.png: has been read for more than 5 seconds without an end" in line
    assert "check the disk or network that it is on" in line
    assert "raise DATALOADER.TIMEOUT_SECONDS (0 = no limit)" in line
    assert left_behind(others) == []
