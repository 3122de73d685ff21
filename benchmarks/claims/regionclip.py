"""Does RegionCLIP's pretraining help regions and new classes? (paper: RegionCLIP > CLIP, RPN > random)

    python -m benchmarks.claims.regionclip --output output/claims/regionclip --seeds 3

A tiny CLIP is trained on captioned pictures of the demo, all twelve classes, no boxes. From it the
image encoder goes on in three ways with the same number of steps: with RegionCLIP's losses on boxes
of an RPN, on random boxes, and with captions alone. Then ground-truth boxes are classified without
training, and each encoder is trained as a detector on boxes of the eight base classes and tested on
all. The sizes are meant for two CPU cores and half an hour; with a GPU give ``--device cuda`` and
larger ones. A stopped experiment goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.claims.captions import PROMPT, noun, write_base_classes, write_captions
from benchmarks.claims.command_line import read_request, run_and_print
from benchmarks.claims.region_accuracy import top1
from benchmarks.claims.runs import Runner, Step, keep_settings, training
from benchmarks.claims.table import Scores, markdown_table, plot_bars, read_box_scores
from benchmarks.claims.tiny_clip import ACCURACY, CONFIG, WEIGHTS
from ext_common.data.json_files import write_json_atomic
from tools.demo_data.classes import BASE_CLASSES, CLASSES, NOVEL_CLASSES

CLIP = "clip"
# name -> line of the table, and MODEL.CLIP.CROP_REGION_TYPE of its pretraining
METHODS = {
    CLIP: ("(a) CLIP", ""),
    "captions": ("(b) CLIP, further with captions", ""),
    "random": ("(c) RegionCLIP, random boxes", "RANDOM"),
    "rpn": ("(d) RegionCLIP, RPN boxes", "FILE"),
}
GROUPS = {
    "base": tuple(kind.name for kind in BASE_CLASSES),
    "novel": tuple(kind.name for kind in NOVEL_CLASSES),
}
ACCURACIES = ("region top-1 base", "region top-1 novel", "region top-1 all")
# column -> which evaluation, and its name in results.json
DETECTIONS = {
    "GT-box AP50 base": ("zeroshot", "AP50-group-base"),
    "GT-box AP50 novel": ("zeroshot", "AP50-group-novel"),
    "detector AP50 base": ("transfer", "AP50-group-base"),
    "detector AP50 novel": ("transfer", "AP50-group-novel"),
}
COLUMNS = (*ACCURACIES, *DETECTIONS)
PLOTTED = (*ACCURACIES[:2], *list(DETECTIONS)[2:])


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is; every field is an option of the command line.

    Attributes:
        scenes: half of the captioned scenes (the demo has two sets of so many).
        singles: captioned pictures of one large object.
        base: scenes with boxes of the base classes.
        val: scenes that are scored, with all classes.
        tested: single-object pictures that CLIP's own training is judged by.
        clip_batch, pretrain_batch, transfer_batch, rpn_batch: pictures per step.
        clip_steps, pretrain_steps, transfer_steps, rpn_steps: of each run.
        workers: loader processes of each run.
    """

    scenes: int = 800
    singles: int = 2400
    base: int = 400
    val: int = 160
    tested: int = 240
    clip_batch: int = 64
    clip_steps: int = 600
    rpn_batch: int = 8
    rpn_steps: int = 400
    pretrain_batch: int = 16
    pretrain_steps: int = 150
    transfer_batch: int = 8
    transfer_steps: int = 100
    workers: int = 0


QUICK = Sizes(6, 12, 6, 4, 12, 8, 2, 2, 2, 2, 2, 2, 2, 0)


@dataclass(frozen=True)
class Experiment:
    """Where and with what; makes the steps.

    Attributes:
        output: absolute folder of everything.
        sizes: how large.
        device: "cpu" or "cuda".
        pretrain_opts, transfer_opts: further KEY VALUE pairs.
    """

    output: Path
    sizes: Sizes
    device: str = "cpu"
    pretrain_opts: tuple[str, ...] = ()
    transfer_opts: tuple[str, ...] = ()

    def data(self) -> list[Step]:
        """Pictures with captions and, others, with boxes."""
        sizes = self.sizes
        return [
            self._pictures("captioned pictures", "pairs", 1, sizes.scenes, sizes.singles, 1),
            self._pictures("pictures with boxes", "boxes", 0, sizes.base, sizes.tested, sizes.val),
        ]

    def _pictures(
        self, title: str, name: str, seed: int, train: int, labels: int, val: int
    ) -> Step:
        folder = self._data / name
        values = {"seed": seed, "train": train, "labels": labels, "val": val}
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        makes = (folder / "manifest.json",)
        return Step(title, "make_demo_dataset", ("--output", str(folder), *words), makes)

    def write_files(self) -> None:
        """Captions, boxes of the base classes, and the names that the configurations use."""
        pairs, boxes = self._data / "pairs", self._data / "boxes"
        sources = {"base_train": "images", "oracle_train": "images", "image_labels": "labels"}
        write_captions(
            {pairs / f"{name}.json": folder for name, folder in sources.items()}, self._captions
        )
        write_base_classes(boxes / "base_train.json", self._data / "base.json", GROUPS["base"])
        shared = {"type": "lvis", "images": "boxes/images", "evaluator": "lvis"}
        datasets = {
            "claim_base": {**shared, "json": "base.json"},
            "claim_val": {**shared, "json": "boxes/val.json", "groups": GROUPS},
        }
        write_json_atomic(self._registry, {"datasets": datasets})

    def shared(self) -> list[Step]:
        """What all seeds use: concepts, RPN, proposals."""
        concepts, regions = self._concepts, self._data / "regions"
        words = ["concepts", "--captions", str(self._captions), "--output", str(concepts)]
        words += ["--frequency", "1" if self.sizes.scenes < 100 else "20"]
        opts = [*self._options(0), "SOLVER.IMS_PER_BATCH", self.sizes.rpn_batch]
        opts += ["SOLVER.MAX_ITER", self.sizes.rpn_steps]
        proposals = ["proposals", "--config-file", "configs/claims/RegionCLIP_pretrain.yaml"]
        proposals += ["--rpn-weights", str(self._rpn), "--output", str(regions)]
        proposals += ["--batch-size", "16", "MODEL.DEVICE", self.device, *self._pairs]
        return [
            Step("concepts", "prepare_data", tuple(words), (concepts,)),
            training(
                "RPN", "claims/RegionCLIP_rpn.yaml", self._rpn.parent, opts, (self._rpn.name,)
            ),
            Step("proposals", "prepare_data", tuple(proposals), (regions / "part-00000.regions",)),
        ]

    def start(self, seed: int) -> list[Step]:
        """What all methods of a seed begin with."""
        return [self._clip(seed), *self._embeddings(seed)]

    def chain(self, method: str, seed: int) -> list[Step]:
        """The steps of one method and seed, from :meth:`start` on."""
        steps: list[Step] = []
        weights = self.clip(seed) / WEIGHTS
        if method != CLIP:
            steps = [self._pretrain(method, seed)]
            weights = self._folder("pretrain", method, seed) / "model_final.pth"
        return [
            *steps,
            self._zeroshot(method, seed, weights),
            self._transfer(method, seed, weights),
        ]

    def clip(self, seed: int) -> Path:
        """Folder of a seed's CLIP."""
        return self.output / f"clip-seed{seed}"

    def scores(self, method: str, seed: int) -> Scores:
        """The line of one run, in percent."""
        folder = self._folder("zeroshot", method, seed)
        (results,) = folder.rglob("lvis_instances_results.json")
        found = top1(results, self._data / "boxes" / "val.json", GROUPS)
        values = {column: found[column.split()[-1]] for column in ACCURACIES}
        for column, (part, key) in DETECTIONS.items():
            file = self._folder(part, method, seed) / "results.json"
            values[column] = read_box_scores(file, (key,))[key]
        return values

    def _clip(self, seed: int) -> Step:
        sizes, boxes, folder = self.sizes, self._data / "boxes", self.clip(seed)
        words = ["--captions", str(self._captions), "--images", str(self._data / "pairs")]
        words += [
            "--test",
            str(boxes / "image_labels.json"),
            "--test-images",
            str(boxes / "labels"),
        ]
        words += ["--output", str(folder), "--steps", str(sizes.clip_steps)]
        words += ["--batch", str(sizes.clip_batch), "--seed", str(seed), "--device", self.device]
        makes = tuple(folder / name for name in (CONFIG, WEIGHTS, ACCURACY))
        return Step(f"CLIP seed{seed}", "tiny_clip", tuple(words), makes, "benchmarks.claims")

    def _embeddings(self, seed: int) -> list[Step]:
        """Of the concepts, of all classes and of the base classes (in order of their ids)."""
        folder = self.clip(seed)
        steps = []
        for name, classes in (("concepts", ()), ("classes", CLASSES), ("base", BASE_CLASSES)):
            words = ["concept-features", "--output", str(folder / f"{name}.pth")]
            if classes:
                words += ["--names", ",".join(noun(kind.name) for kind in classes)]
            else:
                words += ["--concepts", str(self._concepts)]
            words += ["--template", PROMPT, "--cache", "", "--device", self.device]
            words += ["--model", f"local-dir:{folder}", "--weights", str(folder / WEIGHTS)]
            made = (folder / f"{name}.pth",)
            steps.append(Step(f"{name} seed{seed}", "prepare_data", tuple(words), made))
        return steps

    def _pretrain(self, method: str, seed: int) -> Step:
        regions, folder = METHODS[method][1], self._folder("pretrain", method, seed)
        pool = self.clip(seed) / "concepts.pth" if regions else None
        opts: list[object] = [*self._options(seed), *self._pairs]
        opts += ["MODEL.CLIP.ENCODER_WEIGHTS", self.clip(seed) / WEIGHTS]
        opts += ["MODEL.CLIP.CONCEPT_POOL_EMB", pool, "MODEL.CLIP.CROP_REGION_TYPE", regions]
        opts += ["MODEL.CLIP.PROPOSAL_FILE", self._data / "regions"]
        opts += ["SOLVER.IMS_PER_BATCH", self.sizes.pretrain_batch]
        opts += ["SOLVER.MAX_ITER", self.sizes.pretrain_steps, *self.pretrain_opts]
        title, config = f"pretraining {method} seed{seed}", "claims/RegionCLIP_pretrain.yaml"
        return training(title, config, folder, opts, ("model_final.pth",))

    def _zeroshot(self, method: str, seed: int, weights: Path) -> Step:
        folder = self._folder("zeroshot", method, seed)
        config = "configs/claims/RegionCLIP_zeroshot.yaml"
        words: list[object] = ["--eval-only", "--config-file", config, "--overwrite"]
        words += ["OUTPUT_DIR", folder, *self._options(seed), "MODEL.WEIGHTS", weights]
        words += ["MODEL.CLIP.TEXT_EMB_PATH", self.clip(seed) / "classes.pth"]
        title, made = f"zero-shot {method} seed{seed}", (folder / "results.json",)
        return Step(title, "train_net", tuple(map(str, words)), made)

    def _transfer(self, method: str, seed: int, weights: Path) -> Step:
        folder = self._folder("transfer", method, seed)
        opts: list[object] = [*self._options(seed), "MODEL.WEIGHTS", weights]
        opts += ["MODEL.CLIP.BB_RPN_WEIGHTS", self._rpn]
        opts += ["MODEL.CLIP.TEXT_EMB_PATH", self.clip(seed) / "base.pth"]
        opts += ["MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH", self.clip(seed) / "classes.pth"]
        opts += ["SOLVER.IMS_PER_BATCH", self.sizes.transfer_batch]
        opts += ["SOLVER.MAX_ITER", self.sizes.transfer_steps, *self.transfer_opts]
        made = ("model_final.pth", "results.json")
        title, config = f"transfer {method} seed{seed}", "claims/RegionCLIP_transfer.yaml"
        return training(title, config, folder, opts, made)

    def _folder(self, part: str, method: str, seed: int) -> Path:
        return self.output / f"{part}-{method}-seed{seed}"

    def _options(self, seed: int) -> list[object]:
        shared: list[object] = ["DATASETS.REGISTRY", f"('{self._registry.as_posix()}',)"]
        shared += ["MODEL.DEVICE", self.device, "SEED", seed]
        return [*shared, "DATALOADER.NUM_WORKERS", self.sizes.workers]

    @property
    def _pairs(self) -> list[str]:
        folder = self._data / "pairs"
        return ["DATASETS.PATH_TRAIN", f"('{self._captions.as_posix()}+{folder.as_posix()}',)"]

    @property
    def _data(self) -> Path:
        return self.output / "data"

    @property
    def _registry(self) -> Path:
        return self._data / "datasets.yaml"

    @property
    def _captions(self) -> Path:
        return self._data / "captions.json"

    @property
    def _concepts(self) -> Path:
        return self._data / "concepts.txt"

    @property
    def _rpn(self) -> Path:
        return self.output / "rpn" / "model_final.pth"


def run(experiment: Experiment, seeds: Sequence[int], jobs: int) -> str:
    """Everything that is not finished, then table and plot; returns the table.

    Raises:
        ExtError: a command failed, or the folder belongs to an experiment with other settings.
    """
    settings = asdict(experiment)
    del settings["output"]
    keep_settings(experiment.output / "settings.json", settings)
    data = [[step] for step in experiment.data()]
    concepts, *regions = experiment.shared()
    starts = [regions, *(experiment.start(seed) for seed in seeds)]
    methods = [experiment.chain(method, seed) for seed in seeds for method in METHODS]
    total = 1 + sum(map(len, [*data, *starts, *methods]))
    runner = Runner(experiment.output / "logs", jobs, total)
    runner.run_chains(data)
    experiment.write_files()
    runner.run_chains([[concepts]])
    runner.run_chains(starts)
    runner.run_chains(methods)
    return _report(experiment, seeds)


def _report(experiment: Experiment, seeds: Sequence[int]) -> str:
    rows: dict[str, list[Scores]] = {
        title: [experiment.scores(method, seed) for seed in seeds]
        for method, (title, _) in METHODS.items()
    }
    known = [
        json.loads((experiment.clip(seed) / ACCURACY).read_text(encoding="utf-8"))["single_objects"]
        for seed in seeds
    ]
    table = (
        f"{markdown_table(rows, COLUMNS)}\n\nCLIP (a) names {statistics.fmean(known):.1f} % of "
        f"single-object pictures (chance {100 / len(CLASSES):.1f} %)."
    )
    (experiment.output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot_bars(rows, PLOTTED, "percent", experiment.output / "plot.png")
    return table


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 if a step failed; its line on stderr names the log.
    """
    request = read_request(words, __doc__, (Sizes(), QUICK), ("pretrain", "transfer"))
    experiment = Experiment(
        output=request.output,
        sizes=request.sizes,
        device=request.device,
        pretrain_opts=request.opts["pretrain"],
        transfer_opts=request.opts["transfer"],
    )
    return run_and_print(lambda: run(experiment, request.seeds, request.jobs), request.output)


if __name__ == "__main__":
    sys.exit(main())
