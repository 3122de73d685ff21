"""Does SoCo's pretraining help a detector that has few labels? (paper: SoCo > whole images > nothing)

    python -m benchmarks.claims.soco --output output/claims/soco --seeds 3

Unlabelled scenes of the demo are pretrained on in three ways with the same number of steps and
pictures; then the same Mask R-CNN is fine-tuned on few labelled scenes, from nothing and from each
pretraining. The pretrained networks themselves are asked, too: how many objects do they name by their
nearest labelled neighbours? The sizes are meant for two CPU cores and half an hour; with a GPU give ``--device cuda``
and larger ones. A stopped experiment goes on where it was when the same command is given again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.claims.command_line import read_request, run_and_print
from benchmarks.claims.object_naming import NAMED
from benchmarks.claims.runs import ROOT, Runner, Step, keep_settings, training
from benchmarks.claims.table import BOX_COLUMNS, Scores, markdown_table, plot_bars, read_box_scores
from ext_common.config import load_config
from ext_common.data.json_files import read_json
from ext_common.packages import register_all

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
        paintings: painted pictures that their backgrounds are cropped from. Of the demo's four
            photographs, networks learn which one it is.
        labelled: scenes with boxes and masks to fine-tune on.
        val: scenes that are scored.
        picture: side of a scene in pixels, 96 to 256; networks see it at 96.
        pretrain_batch, finetune_batch: pictures per step.
        pretrain_steps, finetune_steps: of each run.
        workers: loader processes of each run.
    """

    unlabelled: int = 800
    labelled: int = 40
    val: int = 100
    picture: int = 192
    pretrain_batch: int = 16
    pretrain_steps: int = 400
    finetune_batch: int = 2
    finetune_steps: int = 500
    workers: int = 0
    paintings: int = 400


COLUMNS = (*BOX_COLUMNS, NAMED)
QUICK = Sizes(6, 6, 4, 96, 2, 2, 2, 2, 0, 2)

PRETRAIN, FINETUNE = "claims/SoCo_pretrain.yaml", "claims/SoCo_finetune.yaml"


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
        words += ["--output", str(proposals), "--source", "authors"]
        # the demo's objects are small: from 0.2 of the picture's side instead of 0.3
        words += ["--strategy", "ratio3size0208post"]
        if sizes.unlabelled < 50:  # starting processes would take longer
            words += ["--workers", "1"]
        return [
            self._scenes(unlabelled, seed=1, train=sizes.unlabelled, paintings=sizes.paintings),
            self._scenes(folder / "labelled", seed=0, train=sizes.labelled, val=sizes.val),
            Step("proposals", "prepare_data", tuple(words), (proposals,)),
        ]

    def _scenes(self, folder: Path, **values: int) -> Step:
        values = {"labels": 12, "val": 1, "size": self.sizes.picture, **values}
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        makes = (folder / "manifest.json",)
        return Step(
            f"{folder.name} scenes", "make_demo_dataset", ("--output", str(folder), *words), makes
        )

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
        """The steps of one method and seed: pretraining and export, naming, fine-tuning."""
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
        return [*steps, self._name(method, seed), training(title, FINETUNE, folder, opts, made)]

    def scores(self, method: str, seed: int) -> Scores:
        """The line of one run, in percent."""
        named: float = read_json(self._named(method, seed))[NAMED]
        return {**read_box_scores(self.finetuned(method, seed) / "results.json"), NAMED: named}

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
        return training(title, PRETRAIN, folder, opts, ("model_final.pth",))

    def _export(self, method: str, seed: int, exported: Path) -> Step:
        words = ["--path", str(self._pretrained(method, seed) / "model_final.pth")]
        words += ["--export", "soco-fpn", "--output", str(exported)]
        return Step(f"export {method} seed{seed}", "convert_weights", tuple(words), (exported,))

    def _name(self, method: str, seed: int) -> Step:
        folder, output = self.output / "data" / "labelled", self._named(method, seed)
        words = ["--config-file", str(ROOT / "configs" / PRETRAIN), "--output", str(output)]
        words += ["--labelled", str(folder / "oracle_train.json")]
        words += ["--test", str(folder / "val.json"), "--images", str(folder / "images")]
        words += ["--seed", str(seed), "--device", self.device]
        if method != SCRATCH:
            words += ["--weights", str(self._pretrained(method, seed) / "model_final.pth")]
        words += ["--opts", *self.pretrain_opts]
        title, package = f"naming {method} seed{seed}", "benchmarks.claims"
        return Step(title, "object_naming", tuple(words), (output,), package)

    def _named(self, method: str, seed: int) -> Path:
        return self.output / f"named-{method}-seed{seed}.json"

    def _shared(self, seed: int) -> list[object]:
        registry = f"('{self._registry().as_posix()}',)"
        shared: list[object] = ["DATASETS.REGISTRY", registry, "MODEL.DEVICE", self.device]
        return [*shared, "SEED", seed, "DATALOADER.NUM_WORKERS", self.sizes.workers]

    def _registry(self) -> Path:
        return self.output / "data" / "datasets.yaml"


def run(experiment: Experiment, seeds: range, jobs: int) -> str:
    """Everything that is not finished, then table and plot; returns the table.

    Raises:
        ExtError: a command failed, or the folder belongs to an experiment with other settings.
    """
    settings = asdict(experiment)
    del settings["output"]
    # runs before and after a change of a recipe are not one experiment
    register_all()
    recipes = [load_config(ROOT / "configs" / name).dump() for name in (PRETRAIN, FINETUNE)]
    settings["recipes"] = hashlib.sha256("".join(recipes).encode()).hexdigest()[:16]
    keep_settings(experiment.output / "settings.json", settings)
    data = experiment.data()
    chains = [experiment.chain(method, seed) for seed in seeds for method in METHODS]
    runner = Runner(experiment.output / "logs", jobs, len(data) + sum(map(len, chains)))
    runner.run_chains([data])
    experiment.write_registry()
    runner.run_chains(chains)
    rows: dict[str, list[Scores]] = {
        title: [experiment.scores(method, seed) for seed in seeds]
        for method, (title, _) in METHODS.items()
    }
    table = markdown_table(rows, COLUMNS)
    (experiment.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot_bars(rows, COLUMNS, "percent", experiment.output / "plot.png")
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if a step failed; its line on stderr names the log.
    """
    request = read_request(words, __doc__, (Sizes(), QUICK), ("pretrain", "finetune"))
    experiment = Experiment(
        output=request.output,
        sizes=request.sizes,
        device=request.device,
        pretrain_opts=request.opts["pretrain"],
        finetune_opts=request.opts["finetune"],
    )
    return run_and_print(lambda: run(experiment, request.seeds, request.jobs), request.output)


if __name__ == "__main__":
    sys.exit(main())
