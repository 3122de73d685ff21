"""Index tar archives and check them: damaged and cut-off ones, links, repeated names.

    python tools/prepare_data.py tar-index --tars shards
    python tools/prepare_data.py tar-index --tars shards --wnids wnids.txt --index-dir indices

Archives that have an index already are compared with it. Nothing else than the archives is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.imagenet_lvis import read_wnids
from ext_common.data.annotation_checks import first_ten
from ext_common.errors import DatasetError
from ext_common.images import printable
from ext_common.tar_index_file import open_index
from ext_common.tar_list import read_tar_list

from .files import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--tars", type=Path, required=True, metavar="DIR|FILE", help=".tar files, or a list"
    )
    parser.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="default: beside the archives"
    )
    parser.add_argument("--wnids", type=Path, metavar="FILE", help="archives that should be there")
    parser.add_argument("--rebuild", action="store_true", help="read all archives again")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 where an archive is missing, cut off or cannot be used."""
    tars = read_tar_list(args.tars)
    files, cut, wrong = 0, [], []
    with progress_bar("indexing", "archive") as progress:
        for done, tar in enumerate(tars, start=1):
            try:
                index = open_index(tar, args.index_dir, rebuild=args.rebuild)
            except DatasetError as error:
                wrong.append(str(error))
            else:
                files += len(index)
                cut += [printable(tar)] if index.cut_at is not None else []
            progress(done, len(tars))
    wanted = read_wnids(args.wnids) if args.wnids else []
    missing = sorted(set(wanted) - {tar.stem for tar in tars})
    print(f"{len(tars):,} archives, {files:,} files")
    for what, names in (("cut off", cut), ("missing", missing), ("unusable", wrong)):
        if names:
            print(f"{len(names):,} {what}: {first_ten(names)}")
    if cut or missing or wrong:
        raise DatasetError(
            f"{len(cut)} archives are cut off, {len(missing)} missing, {len(wrong)} unusable",
            where=printable(args.tars),
            fix="copy or download them again",
        )
    return 0
