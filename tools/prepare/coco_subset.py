"""A seeded share of COCO's images (mini-COCO), with a file that registers it as a dataset.

    python tools/prepare_data.py coco-subset --percent 5 10
    python tools/prepare_data.py coco-subset --ann my_train.json --images photos --percent 1

Each share is written beside the annotations as NAME_5pct_seed0.json, and NAME_5pct_seed0.yaml for
DATASETS.REGISTRY, which gives the dataset that name. LVIS files work as well.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from ext_common.atomic_file import write_bytes
from ext_common.data.annotation_subset import share_of_images

from .files import read_annotations, registered_images, registered_json, save

_DEFAULT = "coco_2017_train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--ann", type=Path, metavar="FILE", help=f"default: {_DEFAULT}'s")
    parser.add_argument("--images", type=Path, metavar="DIR", help=f"default: {_DEFAULT}'s")
    parser.add_argument("--percent", type=float, nargs="+", default=[5.0, 10.0], metavar="P")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="default: beside --ann")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    source = args.ann or registered_json(_DEFAULT)
    images = args.images or registered_images(_DEFAULT)
    folder = args.folder or source.parent
    content = read_annotations(source)
    shares = [
        (percent, share_of_images(content, percent, seed=args.seed, where=str(source)))
        for percent in args.percent
    ]
    for percent, share in shares:
        name = f"{source.stem}_{percent:g}pct_seed{args.seed}"
        save(folder / f"{name}.json", share, source=source)
        write_bytes(folder / f"{name}.yaml", _registry(name, images, folder).encode())
        print(f"wrote {folder / name}.yaml: dataset {name}", flush=True)
    return 0


def _registry(name: str, images: Path, folder: Path) -> str:
    """The file for ``DATASETS.REGISTRY``; the way to the images is relative, so it can be moved."""
    root = os.path.relpath(images.resolve(), folder.resolve())
    entry = {"type": "coco", "json": f"{name}.json", "images": root}
    return f"datasets:\n  {json.dumps(name)}: {json.dumps(entry)}\n"
