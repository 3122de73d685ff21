#!/usr/bin/env python
"""Train or evaluate any model of this project; arguments as in detectron2 (docs/training.md).

python tools/train_net.py --config-file configs/demo/BoxSup_demo.yaml SOLVER.BASE_LR 0.001
python tools/train_net.py --config-file configs/demo/BoxSup_demo.yaml --eval-only MODEL.WEIGHTS x.pth
torchrun --nproc-per-node 8 tools/train_net.py --config-file ...
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from ext_common import packages
from ext_common.checkpoint import Checkpointer, load_model_weights
from ext_common.config import finish_config, load_config, validate_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import ConfigError, ExtError
from ext_common.evaluation.tables import format_results
from ext_common.interruption import INTERRUPTED_CODE, TrainingInterrupted
from ext_common.launch import launch, run_on_main, usable_device
from ext_common.modeling.build import build_model
from ext_common.registries import AUDIT_REGISTRY
from ext_common.run_folder import (
    holds_run,
    open_run_folder,
    resolve_output_dir,
    start_logging,
    write_config,
)
from ext_common.run_results import write_results
from ext_common.trainer import ExtTrainer, Results, evaluate
from ext_common.worker_errors import WorkerCrash, first_line


def build_parser() -> argparse.ArgumentParser:
    """detectron2's arguments and a few of ours."""
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Train or evaluate a model."
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the earlier run in OUTPUT_DIR first"
    )
    parser.add_argument(
        "--allow-partial",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names of weights that MODEL.WEIGHTS may lack or have in excess, e.g. 'roi_heads.*'",
    )
    parser.add_argument(
        "--unsafe-load",
        action="store_true",
        help="run the code in the pickle of MODEL.WEIGHTS; only if you trust its author",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="PATTERN",
        help="config keys that may differ from those of the run that --resume continues",
    )
    parser.add_argument(
        "--audit-freeze",
        action="store_true",
        help="train two steps, prove that the backbone is frozen, and stop",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of expected errors too"
    )
    return parser


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line; what is wrong with it ends the program with exit code 2."""
    parser = build_parser()
    args = parser.parse_args(words)
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        parser.error(f"{late[0]} must stand before the KEY VALUE pairs")
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    # torchrun starts the whole group again after a failure
    args.resume = args.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return args


def read_config(args: argparse.Namespace) -> CfgNode:
    """The complete, checked configuration; datasets are registered on the way."""
    packages.register_all()
    cfg = load_config(args.config_file, args.opts)
    finish_config(cfg, training=not args.eval_only)
    resolve_output_dir(cfg, args.config_file)
    if usable_device(cfg.MODEL.DEVICE) == "cpu":
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    register_from_config(cfg)
    validate_config(cfg, training=not args.eval_only)
    return cfg


def run(args: argparse.Namespace) -> None:
    """What each process of the run does."""
    cfg = read_config(args)
    run_on_main(
        lambda: open_run_folder(
            cfg.OUTPUT_DIR,
            resume=args.resume,
            overwrite=args.overwrite,
            training=not args.eval_only,
        )
    )
    start_logging(cfg, command=" ".join(sys.argv))
    results = run_evaluation(cfg, args) if args.eval_only else run_training(cfg, args)
    if results and comm.is_main_process():
        print(format_results(results, classes=False))
        print(f"Results: {write_results(results, cfg.OUTPUT_DIR)}")


def run_training(cfg: CfgNode, args: argparse.Namespace) -> Results:
    """Train, and give the last evaluation."""
    trainer = ExtTrainer(cfg)
    trainer.resume_or_load(
        resume=args.resume,
        allow_partial=args.allow_partial,
        unsafe=args.unsafe_load,
        allow_change=args.allow_change,
    )
    write_config(cfg)
    if args.audit_freeze:
        report = AUDIT_REGISTRY.get("freeze")(trainer)
        if comm.is_main_process():
            print(report)
        return {}
    trainer.train()
    return trainer.results


def run_evaluation(cfg: CfgNode, args: argparse.Namespace) -> Results:
    """Evaluate ``MODEL.WEIGHTS``, or with ``--resume`` the newest checkpoint of the run."""
    if not cfg.DATASETS.TEST:
        raise ConfigError("nothing to evaluate on", where="DATASETS.TEST", fix="name a dataset")
    if comm.is_main_process() and not holds_run(cfg.OUTPUT_DIR):  # a run has its own
        write_config(cfg)
    model = build_model(cfg)
    if args.resume and Checkpointer(model, cfg.OUTPUT_DIR).resume() is not None:
        return evaluate(cfg, model)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "there are no weights to evaluate", where="MODEL.WEIGHTS", fix="give a weight file"
        )
    load_model_weights(
        model, cfg.MODEL.WEIGHTS, allow_partial=args.allow_partial, unsafe=args.unsafe_load
    )
    return evaluate(cfg, model)


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0 done, 1 error (explained in the last line of stderr), 2 wrong usage, 75 stopped
        by SIGTERM or SIGINT after saving a checkpoint, 130 interrupted at once.
    """
    args = parse_arguments(sys.argv[1:] if words is None else words)
    try:
        # read here already: a wrong key is told once, before any process is started
        device = read_config(args).MODEL.DEVICE
        launch(run, args, device=device)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except TrainingInterrupted as error:
        return fail(str(error), INTERRUPTED_CODE)
    except Exception as error:
        expected = isinstance(error, ExtError)
        if args.debug or not expected or isinstance(error, WorkerCrash):
            traceback.print_exc()
        return fail(str(error) if expected else f"{type(error).__name__}: {first_line(error)}", 1)
    return 0


def fail(what: str, code: int) -> int:
    """Print the final line."""
    sys.stdout.flush()
    print(f"train_net: error: {' '.join(what.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
