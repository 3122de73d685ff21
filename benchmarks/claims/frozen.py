"""Is a frozen classification backbone enough for a detector? (paper: not below FPN, but below more)

    python -m benchmarks.claims.frozen --output output/claims/frozen --seeds 3

A narrow ResNet-50 learns to name single objects of 36 classes; then detectors of twelve of them are
trained on few scenes from nothing, fine-tuned, frozen, and frozen with adapters, with the paper's
FPN and with NAS-FPN + Cascade; the latter also with Copy-Paste and on a part of the scenes. The
sizes are meant for two CPU cores and half an hour; with a GPU give ``--device cuda`` and larger
ones. A stopped experiment goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.claims.command_line import read_request, run_and_print
from benchmarks.claims.frozen_report import write_report
from benchmarks.claims.frozen_runs import ALL, FPN, SCRATCH, DetectorRun, runs_of_a_seed
from benchmarks.claims.runs import Runner, Step, keep_settings, training

PICTURE = 128  # the side in the configurations; P7 needs a multiple of it


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is; every field is an option of the command line.

    Attributes:
        objects: pictures per class to pretrain on (36 classes).
        test_objects: pictures per class that the classifier is tested on.
        pretrain_steps: of 64 pictures.
        scenes: with boxes, to train detectors on.
        percent: of the scenes, in the runs with less data.
        val: scenes that detectors are scored on.
        batch, steps: of every detector.
        workers: loader processes of each run.
    """

    objects: int = 160
    test_objects: int = 20
    pretrain_steps: int = 1200
    scenes: int = 160
    percent: int = 25
    val: int = 160
    batch: int = 4
    steps: int = 400
    workers: int = 0


QUICK = Sizes(2, 1, 2, 8, 25, 4, 2, 2, 0)


@dataclass(frozen=True)
class Experiment:
    """Where and with what; makes the steps.

    Attributes:
        output: absolute folder of everything.
        sizes: how large.
        device: "cpu" or "cuda".
        detector_opts: further KEY VALUE pairs of all detectors.
    """

    output: Path
    sizes: Sizes
    device: str = "cpu"
    detector_opts: tuple[str, ...] = ()

    def data(self) -> list[Step]:
        """Pictures of single objects, and scenes."""
        sizes = self.sizes
        pictures, scenes = self._pictures(), self._data() / "scenes"
        drawn = ["--output", str(pictures), "--train", str(sizes.objects)]
        drawn += ["--test", str(sizes.test_objects)]
        values = {"seed": 0, "train": sizes.scenes, "labels": 12, "val": sizes.val, "size": PICTURE}
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        words = ["--output", str(scenes), *words]
        return [
            Step("pictures", "object_pictures", tuple(drawn), (pictures,), "benchmarks.claims"),
            Step("scenes", "make_demo_dataset", tuple(words), (scenes / "manifest.json",)),
        ]

    def share(self, seed: int) -> Step:
        """The scenes of the runs with less data; every seed draws its own."""
        source = self._data() / "scenes"
        words = ["coco-subset", "--ann", str(source / "oracle_train.json")]
        words += ["--images", str(source / "images"), "--folder", str(self._data())]
        words += ["--percent", str(self.sizes.percent), "--seed", str(seed)]
        made = self._data() / f"{self._share_name(seed)}.json"
        return Step(f"share of seed{seed}", "prepare_data", tuple(words), (made,))

    def write_registry(self, seeds: Sequence[int]) -> None:
        """The names of datasets that the runs use."""
        scenes = {"type": "lvis", "images": "scenes/images", "evaluator": "lvis"}
        names = {"claim_val": "scenes/val.json", _train_name(ALL, 0): "scenes/oracle_train.json"}
        for seed in seeds:
            names[_train_name(self.sizes.percent, seed)] = f"{self._share_name(seed)}.json"
        datasets = {name: {**scenes, "json": path} for name, path in names.items()}
        content = json.dumps({"datasets": datasets}, indent=1) + "\n"
        self._registry().write_text(content, encoding="utf-8")

    def pretrain(self, seed: int) -> Step:
        """The classification whose backbone the detectors of this seed get."""
        words = ["--config-file", f"configs/claims/{FPN.config}"]
        words += ["--pictures", str(self._pictures()), "--output", str(self._trunk(seed))]
        words += ["--steps", str(self.sizes.pretrain_steps), "--seed", str(seed)]
        words += ["--device", self.device]
        made = (self._trunk(seed), self.classified(seed))
        title = f"pretraining seed{seed}"
        return Step(title, "classification", tuple(words), made, "benchmarks.claims")

    def detector(self, run: DetectorRun, seed: int) -> Step:
        """One training of a detector, with its score."""
        sizes = self.sizes
        train = _train_name(run.percent, seed)
        opts: list[object] = ["DATASETS.REGISTRY", f"('{self._registry().as_posix()}',)"]
        opts += ["DATASETS.TRAIN", f"('{train}',)", "MODEL.DEVICE", self.device, "SEED", seed]
        opts += ["DATALOADER.NUM_WORKERS", sizes.workers]
        opts += ["SOLVER.IMS_PER_BATCH", sizes.batch, "SOLVER.MAX_ITER", sizes.steps]
        # one checkpoint half way: a stopped run loses at most that much
        opts += ["SOLVER.CHECKPOINT_PERIOD", -(-sizes.steps // 2)]
        opts += run.opts(self._trunk(seed))
        opts += self.detector_opts
        made = ("model_final.pth", "results.json")
        folder = self.folder(run, seed)
        return training(folder.name, f"claims/{run.neck.config}", folder, opts, made)

    def folder(self, run: DetectorRun, seed: int) -> Path:
        """Of one detector."""
        return self.output / f"{run.name}-seed{seed}"

    def classified(self, seed: int) -> Path:
        """File with the accuracy of the classification."""
        return self._trunk(seed).with_suffix(".json")

    def _trunk(self, seed: int) -> Path:
        return self.output / f"trunk-seed{seed}.safetensors"

    def _data(self) -> Path:
        return self.output / "data"

    def _pictures(self) -> Path:
        return self._data() / "pictures.npz"

    def _registry(self) -> Path:
        return self._data() / "datasets.yaml"

    def _share_name(self, seed: int) -> str:
        return f"oracle_train_{self.sizes.percent}pct_seed{seed}"


def _train_name(percent: int, seed: int) -> str:
    return "claim_train" if percent == ALL else f"claim_train_{percent}pct_seed{seed}"


def run(experiment: Experiment, seeds: Sequence[int], jobs: int) -> str:
    """Everything that is not finished, then tables and plots; returns the tables.

    Raises:
        ExtError: a command failed, or the folder belongs to an experiment with other settings.
    """
    settings = asdict(experiment)
    del settings["output"]
    keep_settings(experiment.output / "settings.json", settings)
    data = experiment.data()
    shares = [experiment.share(seed) for seed in seeds]
    pretrained = [experiment.pretrain(seed) for seed in seeds]
    runs = [(run, seed) for seed in seeds for run in runs_of_a_seed(experiment.sizes.percent)]
    # those from nothing need not wait for the classifications
    first = [experiment.detector(run, seed) for run, seed in runs if run.method == SCRATCH]
    then = [experiment.detector(run, seed) for run, seed in runs if run.method != SCRATCH]
    total = len([*data, *shares, *pretrained, *runs])
    runner = Runner(experiment.output / "logs", jobs, total)
    runner.run_chains([[step] for step in data])
    runner.run_chains([shares])
    experiment.write_registry(seeds)
    runner.run_chains([[step] for step in (*pretrained, *first)])
    runner.run_chains([[step] for step in then])
    scores = {
        run: [experiment.folder(run, seed) / "results.json" for seed in seeds]
        for run in runs_of_a_seed(experiment.sizes.percent)
    }
    return write_report(
        experiment.output,
        scores,
        [experiment.classified(seed) for seed in seeds],
        scenes=experiment.sizes.scenes,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 1 if a step failed."""
    asked = read_request(words, __doc__, (Sizes(), QUICK), ("detector",))
    experiment = Experiment(asked.output, asked.sizes, asked.device, asked.opts["detector"])
    return run_and_print(lambda: run(experiment, asked.seeds, asked.jobs), asked.output)


if __name__ == "__main__":
    sys.exit(main())
