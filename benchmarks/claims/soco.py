"""Does SoCo's pretraining help a detector that has few labels? (paper: SoCo > whole images > nothing)

    python -m benchmarks.claims.soco --output output/claims/soco --seeds 3

Unlabelled scenes of the demo are pretrained on in three ways with the same number of steps and
pictures; then the same Mask R-CNN is fine-tuned on few labelled scenes, from nothing and from each
pretraining. The sizes are meant for two CPU cores and half an hour; with a GPU give ``--device cuda``
and larger ones. A stopped experiment goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from benchmarks.claims.runs import Runner, Step, keep_settings, training
from benchmarks.claims.table import BOX_COLUMNS, Scores, markdown_table, plot_bars, read_box_scores
from ext_common.errors import ExtError

SCRATCH = "scratch"
# name -> line of the table, and SOCO.PROPOSALS.SOURCE of its pretraining
METHODS = {
    SCRATCH: ("(a) from scratch", ""),
    "whole_image": ("(b) whole images contrasted", "whole_image"),
    "soco": ("(c) SoCo, selective search", "file"),
    "random": ("(d) SoCo, random boxes", "random"),
}


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is; every field is an option of the command line.

    Attributes:
        unlabelled: half of the scenes to pretrain on (the demo has two sets of so many).
        labelled: scenes with boxes and masks to fine-tune on.
        val: scenes that are scored.
        picture: side of a scene in pixels, 96 to 256.
        pretrain_batch, finetune_batch: pictures per step.
        pretrain_steps, finetune_steps: of each run.
        workers: loader processes of each run.
    """

    unlabelled: int = 200
    labelled: int = 60
    val: int = 80
    picture: int = 160
    pretrain_batch: int = 8
    pretrain_steps: int = 140
    finetune_batch: int = 4
    finetune_steps: int = 180
    workers: int = 0


QUICK = Sizes(6, 6, 4, 96, 2, 2, 2, 2, 0)


@dataclass(frozen=True)
class Experiment:
    """Where and with what; makes the steps.

    Attributes:
        output: absolute folder of everything.
        sizes: how large.
        device: "cpu" or "cuda".
        pretrain_opts, finetune_opts: further KEY VALUE pairs.
    """

    output: Path
    sizes: Sizes
    device: str = "cpu"
    pretrain_opts: tuple[str, ...] = ()
    finetune_opts: tuple[str, ...] = ()

    def data(self) -> list[Step]:
        """Scenes without labels, scenes with labels, and proposals of the former."""
        sizes, folder = self.sizes, self.output / "data"
        unlabelled, proposals = folder / "unlabelled", folder / "unlabelled.proposals"
        words = ["soco-proposals", "--images", str(unlabelled / "images")]
        words += ["--output", str(proposals), "--source", "opencv-fast"]
        # the demo's objects are small: from 0.2 of the picture's side instead of 0.3
        words += ["--strategy", "ratio3size0208post"]
        if sizes.unlabelled < 50:  # starting processes would take longer
            words += ["--workers", "1"]
        return [
            self._scenes("unlabelled scenes", unlabelled, 1, sizes.unlabelled, 1),
            self._scenes("labelled scenes", folder / "labelled", 0, sizes.labelled, sizes.val),
            Step("proposals", "prepare_data", tuple(words), (proposals,)),
        ]

    def _scenes(self, title: str, folder: Path, seed: int, train: int, val: int) -> Step:
        values = {"seed": seed, "train": train, "labels": 12, "val": val}
        values["size"] = self.sizes.picture
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        makes = (folder / "manifest.json",)
        return Step(title, "make_demo_dataset", ("--output", str(folder), *words), makes)

    def write_registry(self) -> None:
        """The names that the configurations use."""
        images = {"type": "lvis", "images": "labelled/images", "evaluator": "lvis"}
        datasets = {
            "claim_unlabelled": {"type": "image_folder", "images": "unlabelled/images"},
            "claim_labelled": {**images, "json": "labelled/oracle_train.json"},
            "claim_val": {**images, "json": "labelled/val.json"},
        }
        path = self._registry()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"datasets": datasets}, indent=1) + "\n", encoding="utf-8")

    def chain(self, method: str, seed: int) -> list[Step]:
        """The steps of one method and seed: pretraining and export, then fine-tuning."""
        steps: list[Step] = []
        weights = ""
        if method != SCRATCH:
            exported = self.output / f"pretrain-{method}-seed{seed}.pkl"
            steps = [self._pretrain(method, seed), self._export(method, seed, exported)]
            weights = str(exported)
        sizes = self.sizes
        opts = [*self._shared(seed), "MODEL.WEIGHTS", weights]
        opts += ["SOLVER.IMS_PER_BATCH", sizes.finetune_batch]
        opts += ["SOLVER.MAX_ITER", sizes.finetune_steps]
        # precise statistics of batch norms: one look at every labelled picture
        batches = -(-sizes.labelled // sizes.finetune_batch)
        opts += ["TEST.PRECISE_BN.NUM_ITER", batches, *self.finetune_opts]
        folder = self.finetuned(method, seed)
        made = ("model_final.pth", "results.json")
        title = f"fine-tuning {method} seed{seed}"
        return [*steps, training(title, "claims/SoCo_finetune.yaml", folder, opts, made)]

    def finetuned(self, method: str, seed: int) -> Path:
        """Folder of a fine-tuning."""
        return self.output / f"finetune-{method}-seed{seed}"

    def _pretrained(self, method: str, seed: int) -> Path:
        return self.output / f"pretrain-{method}-seed{seed}"

    def _pretrain(self, method: str, seed: int) -> Step:
        sizes = self.sizes
        opts: list[object] = [*self._shared(seed), "SOCO.PROPOSALS.SOURCE", METHODS[method][1]]
        opts += ["SOCO.PROPOSALS.FILE", self.output / "data" / "unlabelled.proposals"]
        opts += ["SOLVER.IMS_PER_BATCH", sizes.pretrain_batch]
        opts += ["SOLVER.MAX_ITER", sizes.pretrain_steps, *self.pretrain_opts]
        folder, title = self._pretrained(method, seed), f"pretraining {method} seed{seed}"
        return training(title, "claims/SoCo_pretrain.yaml", folder, opts, ("model_final.pth",))

    def _export(self, method: str, seed: int, exported: Path) -> Step:
        words = ["--path", str(self._pretrained(method, seed) / "model_final.pth")]
        words += ["--export", "soco-fpn", "--output", str(exported)]
        return Step(f"export {method} seed{seed}", "convert_weights", tuple(words), (exported,))

    def _shared(self, seed: int) -> list[object]:
        registry = f"('{self._registry().as_posix()}',)"
        shared: list[object] = ["DATASETS.REGISTRY", registry, "MODEL.DEVICE", self.device]
        return [*shared, "SEED", seed, "DATALOADER.NUM_WORKERS", self.sizes.workers]

    def _registry(self) -> Path:
        return self.output / "data" / "datasets.yaml"


def run(experiment: Experiment, seeds: int, jobs: int) -> str:
    """Everything that is not finished, then table and plot; returns the table.

    Raises:
        ExtError: a command failed, or the folder belongs to an experiment with other settings.
    """
    settings = asdict(experiment)
    del settings["output"]
    keep_settings(experiment.output / "settings.json", settings)
    data = experiment.data()
    chains = [experiment.chain(method, seed) for seed in range(seeds) for method in METHODS]
    runner = Runner(experiment.output / "logs", jobs, len(data) + sum(map(len, chains)))
    runner.run_chains([data])
    experiment.write_registry()
    runner.run_chains(chains)
    rows: dict[str, list[Scores]] = {
        title: [
            read_box_scores(experiment.finetuned(method, seed) / "results.json")
            for seed in range(seeds)
        ]
        for method, (title, _) in METHODS.items()
    }
    table = markdown_table(rows, BOX_COLUMNS)
    (experiment.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot_bars(
        rows, BOX_COLUMNS, "box AP of the fine-tuned detector", experiment.output / "plot.png"
    )
    return table


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="two steps each: do the parts fit?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    cores = min(2, os.cpu_count() or 1)
    parser.add_argument(
        "--jobs",
        type=int,
        default=cores,
        help=f"runs side by side, one thread each (default {cores}); 0 = all in this process",
    )
    for field in fields(Sizes):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=int, help=f"default: {field.default}"
        )
    for part in ("pretrain", "finetune"):
        parser.add_argument(f"--{part}-opts", nargs="*", default=[], metavar="KEY VALUE")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if a step failed; its line on stderr names the log.
    """
    parser = build_parser()
    args = parser.parse_args(words)
    if args.seeds < 1 or args.jobs < 0:
        parser.error("--seeds is 1 or more, --jobs 0 or more")
    started = time.monotonic()
    given = {field.name: getattr(args, field.name) for field in fields(Sizes)}
    given = {name: value for name, value in given.items() if value is not None}
    experiment = Experiment(
        output=args.output.absolute(),
        sizes=replace(QUICK if args.quick else Sizes(), **given),
        device=args.device,
        pretrain_opts=tuple(args.pretrain_opts),
        finetune_opts=tuple(args.finetune_opts),
    )
    try:
        table = run(experiment, 1 if args.quick else args.seeds, 0 if args.quick else args.jobs)
    except (ExtError, OSError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    print(f"\n{table}\n\ntable and plot: {experiment.output}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
