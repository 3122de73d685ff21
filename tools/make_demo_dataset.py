"""Write the demo's small open-vocabulary dataset (the same bytes every time).

Example: ``python tools/make_demo_dataset.py --output output/demo/data``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from ext_common.errors import ExtError

if __package__:  # imported as tools.make_demo_dataset
    from .demo_data.manifest import Settings, is_complete
    from .demo_data.writer import picture_count, write_dataset
else:  # run as a script: its own folder is on sys.path
    from demo_data.manifest import Settings, is_complete
    from demo_data.writer import picture_count, write_dataset

_HELP = {
    "seed": "of all randomness",
    "train": "pictures in base_train, and as many in oracle_train",
    "labels": "pictures with image labels, over all classes",
    "val": "validation pictures",
    "size": "side of a picture in pixels, 96 to 256",
    "paintings": "painted pictures to crop backgrounds from; 0 = the four photographs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the dataset unless it is there; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    for field in fields(Settings):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, help=_HELP[field.name]
        )
    given = vars(parser.parse_args(arguments))
    folder: Path = given.pop("output")
    try:
        settings = Settings(**given)
        if is_complete(folder, settings):
            print(f"{folder} is complete: nothing to do")
        else:
            total = picture_count(settings)
            with tqdm(total=total, desc="demo pictures", mininterval=0.5) as bar:
                write_dataset(folder, settings, bar.update)
    except (ExtError, OSError) as error:
        print(f"make_demo_dataset: {error}", file=sys.stderr)
        return 1
    print(f"registry for DATASETS.REGISTRY: {folder / 'datasets.yaml'}")
    print(f"what it looks like:             {folder / 'preview.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
