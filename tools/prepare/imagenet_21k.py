"""ImageNet-21k: image labels from one tar archive per synset, without unpacking.

    python tools/prepare_data.py imagenet-21k --tars datasets/imagenet/ImageNet-21k \\
        --synsets wordnet/dict --output datasets/imagenet/annotations/imagenet-22k_image_info.json

Also written: an index of every archive (DATALOADER.TAR_INDEX_DIR), the list of the archives in the
order of their numbers (DATALOADER.TARFILE_PATH). What is known of an archive is kept until all are
done, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from detic_ext.data.preparation.imagenet_21k import (
    ArchiveSizes,
    SizeTask,
    archive_sizes,
    categories_of,
    image_records,
)
from detic_ext.data.preparation.imagenet_lvis import read_wnids
from detic_ext.data.preparation.synset_table import read_synsets
from ext_common.config import get_config
from ext_common.data.annotation_checks import first_ten, refuse
from ext_common.errors import ConfigError, DatasetError
from ext_common.packages import register_all
from ext_common.tar_list import read_tar_list, write_tar_list

from .files import progress_bar, save_unchecked, say_written
from .options import add_bad_files, add_synsets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--tars", type=Path, required=True, metavar="DIR|FILE", help="WNID.tar files, or a list"
    )
    add_synsets(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="default: DATALOADER.TAR_INDEX_DIR's default"
    )
    parser.add_argument(
        "--tar-list", type=Path, metavar="NPY", help="default: DATALOADER.TARFILE_PATH's default"
    )
    parser.add_argument("--wnids", type=Path, metavar="FILE", help="synsets that must be there")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    add_bad_files(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.workers < 1:
        raise ConfigError(f"{args.workers} processes", where="--workers", fix="at least 1")
    register_all()
    loader = get_config().DATALOADER
    index_dir = args.index_dir or Path(loader.TAR_INDEX_DIR)
    list_file = args.tar_list or Path(loader.TARFILE_PATH)
    tars = read_tar_list(args.tars)
    if args.wnids:
        missing = sorted(set(read_wnids(args.wnids)) - {tar.stem for tar in tars})
        refuse(missing, "synsets without an archive", where=str(args.tars))
    categories = categories_of(tars, read_synsets(args.synsets))
    work = args.output.with_suffix(".parts")
    tasks = [SizeTask(tar, index_dir, work / f"{tar.stem}.json") for tar in tars]
    found = _all_sizes(tasks, args.workers)
    bad = [text for sizes in found for text in sizes.bad]
    if args.bad_files == "error":
        refuse(bad, "files that are no images", where=str(args.tars), fix="or --bad-files skip")
    elif bad:
        print(f"{len(bad):,} files are no images and left out: {first_ten(bad)}")
    write_tar_list(list_file, tars, [len(sizes.sizes_M2) for sizes in found])
    say_written(list_file, f"{len(tars):,} archives")
    if not any((sizes.sizes_M2 > 0).any() for sizes in found):
        raise DatasetError("no images in any archive", where=str(args.tars))
    records = image_records([sizes.sizes_M2 for sizes in found])
    content = {"images": records, "annotations": [], "categories": categories}
    save_unchecked(args.output, content)
    shutil.rmtree(work, ignore_errors=True)
    return 0


def _all_sizes(tasks: Sequence[SizeTask], workers: int) -> list[ArchiveSizes]:
    found = []
    with progress_bar("reading sizes", "archive") as progress, _mapper(workers) as over:
        for sizes in over(archive_sizes, tasks):
            found.append(sizes)
            progress(len(found), len(tasks))
    return found


@contextmanager
def _mapper(workers: int) -> Iterator[type[map]]:
    """``map``, here or in several processes."""
    if workers == 1:
        yield map
        return
    # a copy of this process could hang on its threads' locks; the server has imported, not started
    context = get_context("forkserver")
    context.set_forkserver_preload([archive_sizes.__module__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool.map  # type: ignore[misc]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
