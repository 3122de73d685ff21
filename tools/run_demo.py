"""The whole story on two CPU cores: data, boxes, Detic, table, pictures (`make demo`).

Everything that it does is one of the other tools; each command is printed before it runs.
``--table`` adds the oracle (boxes for all classes) and three seeds and writes the README's table and
plot (`make demo-table`).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo_table import Scores, format_table, plot, read_scores

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = min(2, os.cpu_count() or 1)  # gloo processes on CPU: one thread each
# `make demo` is to end within eight minutes; the table takes the configurations' 300 iterations
QUICK = ("SOLVER.MAX_ITER", "216")
STEPS = {"boxsup": "BoxSup_demo", "detic": "Detic_demo", "oracle": "Oracle_demo"}
TITLES = {
    "boxsup": "boxes of base classes",
    "detic": "Detic: boxes + image labels",
    "oracle": "oracle: boxes of all classes",
}


class DemoError(RuntimeError):
    """A command of the demo failed."""


def run(script: str, *arguments: str) -> None:
    """Run one of our tools, showing the command.

    Raises:
        DemoError: it ended with another exit code than 0.
    """
    command = [sys.executable, str(ROOT / "tools" / script), *arguments]
    print(f"\n$ python tools/{script} {shlex.join(arguments)}", flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        raise DemoError(f"tools/{script} ended with exit code {code}; its last line says why")


def train(step: str, data: Path, output: Path, seed: int, opts: list[str]) -> Path:
    """Train one step and return its folder; a finished one is not trained again."""
    folder = output / f"{step}-seed{seed}"
    if (folder / "results.json").is_file() and (folder / "model_final.pth").is_file():
        print(f"\n{folder} is finished already")
        return folder
    start = [] if step == "boxsup" else weights_of(output / f"boxsup-seed{seed}")
    run(
        "train_net.py",
        "--config-file",
        f"configs/demo/{STEPS[step]}.yaml",
        "--overwrite",
        "--num-gpus",
        str(PROCESSES),
        "DATASETS.REGISTRY",
        f"('{(data / 'datasets.yaml').as_posix()}',)",
        "OUTPUT_DIR",
        str(folder),
        "SEED",
        str(seed),
        *start,
        *shared_batches(step),
        *opts,
    )
    return folder


def shared_batches(step: str) -> list[str]:
    """Per-process batch sizes that keep the total of the configuration.

    ``IMS_PER_BATCH`` is a total; ``DATASET_BS`` is per process.
    """
    if step != "detic" or PROCESSES == 1:
        return []
    return ["DATALOADER.DATASET_BS", str([size // PROCESSES for size in (8, 16)])]


def weights_of(folder: Path) -> list[str]:
    """The pair that starts from the final weights of another step."""
    return ["MODEL.WEIGHTS", str(folder / "model_final.pth")]


def show(detic: Path, data: Path, output: Path) -> Path:
    """Run the demo script on validation pictures and on a real photograph."""
    names = json.loads((data / "val.json").read_text(encoding="utf-8"))["images"][:12]
    pictures = [str(data / "images" / image["file_name"]) for image in names]
    photograph = output / "photograph.png"
    save_photograph(photograph)
    folder = output / "pictures"
    run(
        "demo.py",
        "--config-file",
        "configs/demo/Detic_demo.yaml",
        "--input",
        *pictures,
        str(photograph),
        "--output",
        str(folder),
        "--confidence-threshold",
        "0.3",
        "--format",
        "image,coco,csv",
        "--opts",
        "DATASETS.REGISTRY",
        f"('{(data / 'datasets.yaml').as_posix()}',)",
        *weights_of(detic),
    )
    return folder


def save_photograph(path: Path) -> None:
    """One of the real photographs that scikit-image ships."""
    from PIL import Image
    from skimage import data

    Image.fromarray(data.coffee()).save(path)


def main(argv: list[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0 if every step worked.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--table", action="store_true", help="three seeds and the oracle")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "images", help="for --table")
    parser.add_argument("opts", nargs="*", default=[], help="KEY VALUE pairs for every training")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    output: Path = arguments.output.absolute()
    data = output / "data"
    opts = [*(() if arguments.table else QUICK), *arguments.opts]
    seeds = (0, 1, 2) if arguments.table else (0,)
    steps = list(STEPS) if arguments.table else ["boxsup", "detic"]
    try:
        run("make_demo_dataset.py", "--output", str(data))
        scores: dict[str, list[Scores]] = {step: [] for step in steps}
        for seed in seeds:
            for step in steps:
                folder = train(step, data, output, seed, opts)
                scores[step].append(read_scores(folder / "results.json"))
        pictures = show(output / "detic-seed0", data, output)
    except DemoError as error:
        print(f"the demo stopped: {error}", file=sys.stderr)
        return 1
    table = format_table({TITLES[step]: rows for step, rows in scores.items()})
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\npictures: {pictures}")
    if arguments.table:
        arguments.docs.mkdir(parents=True, exist_ok=True)
        plot({TITLES[step]: rows for step, rows in scores.items()}, arguments.docs / "demo-ap.png")
        (arguments.docs / "demo-table.md").write_text(table + "\n", encoding="utf-8")
        print(f"table and plot: {arguments.docs}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
