"""Building a configuration: defaults of every registered package, one file, command-line pairs.

detectron2's own ``get_cfg()`` with a package's ``add_*_config(cfg)`` works as well;
:func:`load_config` adds safe YAML, unknown keys that name the nearest valid one, and checks.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ext_common.errors import ConfigError
from ext_common.registries import (
    CONFIG_CHECK_REGISTRY,
    CONFIG_REGISTRY,
    FINISH_CONFIG_REGISTRY,
)
from ext_common.yaml_safe import read_yaml_with_base

_COMMAND_LINE = "command line"


def add_default(node: CfgNode, name: str, value: Any) -> None:
    """Add a key with its default unless it is there (detectron2 main owns some of ours)."""
    if name not in node:
        setattr(node, name, value)


def add_node(node: CfgNode, name: str) -> CfgNode:
    """The child block ``name``, made if it is missing."""
    add_default(node, name, CfgNode())
    child: CfgNode = node[name]
    return child


def add_common_config(cfg: CfgNode) -> None:
    """Keys that two or more packages read."""
    # YAML files that list datasets to register (docs/data.md)
    add_default(cfg.DATASETS, "REGISTRY", ())
    # annotation files of more megabytes are indexed instead of read into memory; -1 = never
    add_default(cfg.DATASETS, "INDEX_ABOVE_MB", 100)
    # folder for the indices; empty = beside the file, or the user's cache where that is read-only
    add_default(cfg.DATASETS, "INDEX_FOLDER", "")

    # a sample that takes longer to read stops the run with its name; 0 = no limit
    add_default(cfg.DATALOADER, "TIMEOUT_SECONDS", 60.0)

    # class names: a,b,c | FILE | dataset:NAME; empty = as the package says
    add_default(cfg.MODEL, "VOCABULARY", "")
    text = add_node(cfg.MODEL, "TEXT_ENCODER")
    add_default(text, "NAME", "ViT-B-32-quickgelu")  # an open_clip model name, or "hash"
    # OpenAI .pt, open_clip or RegionCLIP file; empty = the one in MODEL.WEIGHTS, or the cache
    add_default(text, "WEIGHTS", "")
    add_default(text, "DIM", 512)  # width of the "hash" encoder; CLIP models bring their own
    add_default(text, "TEMPLATES", ("a {}",))  # prompts; several are averaged
    # names in prompts as RegionCLIP writes them: without , ( ) and with blanks for + and _
    add_default(text, "CLEAN_NAMES", False)
    add_default(text, "CACHE_DIR", "")  # folder for computed embeddings; empty = no cache
    add_default(text, "ALLOW_DOWNLOAD", False)  # let open_clip fetch missing weights

    _add_backbones(cfg)
    _add_input(cfg)
    _add_solver(cfg.SOLVER)
    add_default(cfg, "FIND_UNUSED_PARAM", True)  # DDP: batches may leave some heads unused


def _add_backbones(cfg: CfgNode) -> None:
    # any image backbone of timm
    timm = add_node(cfg.MODEL, "TIMM")
    add_default(timm, "BASE_NAME", "resnet50")  # any timm model that has features_only
    add_default(timm, "OUT_LEVELS", (3, 4, 5))  # 1-based feature levels given to the FPN
    add_default(timm, "NORM", "FrozenBN")  # FrozenBN | BN | SyncBN
    add_default(timm, "FREEZE_AT", 0)  # >=1 freezes the stem, >=2 also layer1
    add_default(timm, "PRETRAINED", False)  # let timm load its own weights (needs a cache)

    # Swin Transformers and BiFPN necks
    swin = add_node(cfg.MODEL, "SWIN")
    add_default(swin, "SIZE", "T")  # T | S | B | B-22k | B-22k-384 | L-22k | L-22k-384
    add_default(swin, "USE_CHECKPOINT", False)  # recompute activations to save memory
    add_default(swin, "OUT_FEATURES", (1, 2, 3))  # stages given to the FPN, 0-based
    bifpn = add_node(cfg.MODEL, "BIFPN")
    add_default(bifpn, "NUM_LEVELS", 5)  # levels of the pyramid
    add_default(bifpn, "NUM_BIFPN", 6)  # repeats
    add_default(bifpn, "NORM", "GN")  # norm of the BiFPN
    add_default(bifpn, "OUT_CHANNELS", 160)  # channels of the pyramid
    add_default(bifpn, "SEPARABLE_CONV", False)  # depthwise separable convolutions


def _add_input(cfg: CfgNode) -> None:
    # EfficientDetResizeCrop | ResizeShortestEdge | DETR; empty = detectron2's own
    add_default(cfg.INPUT, "CUSTOM_AUG", "")
    add_default(cfg.INPUT, "TRAIN_SIZE", 640)  # square side of EfficientDetResizeCrop, pixels
    add_default(cfg.INPUT, "SCALE_RANGE", (0.1, 2.0))  # its scale jitter
    add_default(cfg.INPUT, "TEST_SIZE", 640)  # square side at test, pixels
    add_default(cfg.INPUT, "TEST_INPUT_TYPE", "default")  # default = shortest edge | square
    add_default(cfg.INPUT, "MAX_PIXELS", 178_956_970)  # larger images are refused before decoding
    add_default(cfg.INPUT, "MAX_INSTANCES", 0)  # objects of a training image; 0 = no limit
    add_default(cfg.INPUT, "BAD_SAMPLE_POLICY", "skip")  # skip (count, log, replace) | raise
    # go by the picture where its size is not the record's
    add_default(cfg.INPUT, "TRUST_FILES", False)
    # share of skipped samples that stops training
    add_default(cfg.INPUT, "BAD_SAMPLE_LIMIT", 0.001)


def _add_solver(solver: CfgNode) -> None:
    add_default(solver, "USE_CUSTOM_SOLVER", False)  # one group per parameter, multipliers, AdamW
    add_default(solver, "OPTIMIZER", "SGD")  # SGD | ADAMW | one that a package adds (LARS)
    add_default(solver, "BACKBONE_MULTIPLIER", 1.0)  # learning-rate factor of backbone parameters
    add_default(solver, "CUSTOM_MULTIPLIER", 1.0)  # factor of parameters named below
    add_default(solver, "CUSTOM_MULTIPLIER_NAME", [])  # substrings of parameter names
    # batches of IMS_PER_BATCH images whose gradients are added for one step (one iteration)
    add_default(solver, "ACCUMULATE", 1)
    # BASE_LR is meant for so many images per step and scaled to those of this run; 0 = as it is
    add_default(solver, "LR_REFERENCE_BATCH", 0)
    add_default(solver.AMP, "DTYPE", "float16")  # float16 (with loss scaling) | bfloat16
    add_default(solver, "RESET_ITER", False)  # start at iteration 0 from a resumed checkpoint
    add_default(solver, "TRAIN_ITER", -1)  # >=0: stop there while the schedule keeps MAX_ITER
    add_default(solver, "CHECKPOINT_KEEP_LAST", 0)  # periodic checkpoints to keep; 0 = all
    # task/metric of the first test set, e.g. bbox/AP50: its best model is kept as model_best.pth
    add_default(solver, "CHECKPOINT_KEEP_BEST", "")
    add_default(solver, "CHECKPOINT_FAILURE", "stop")  # stop | continue when one cannot be saved
    # steps without a finite loss to leave out before stopping
    add_default(solver, "NONFINITE_SKIP", 0)
    # look for NaN and inf in gradients, not only in losses
    add_default(solver, "CHECK_GRADIENTS", True)


def get_config() -> CfgNode:
    """detectron2's defaults with those of :func:`add_common_config` and every imported package."""
    cfg = get_cfg()
    add_common_config(cfg)
    for _, add in sorted(CONFIG_REGISTRY):
        add(cfg)
    return cfg


def load_config(
    config_file: str | Path = "", opts: Sequence[str] = (), *, base: CfgNode | None = None
) -> CfgNode:
    """A configuration from a file and ``KEY VALUE`` pairs, with every key known and typed.

    Args:
        config_file: YAML file; empty = defaults only.
        opts: ``KEY VALUE KEY VALUE ...``, as on detectron2's command line.
        base: start from this configuration instead of :func:`get_config`.

    Raises:
        ConfigError: an unknown key (the nearest valid one is suggested), a wrong type, unsafe YAML.
    """
    cfg = base.clone() if base is not None else get_config()
    if config_file:
        _merge(cfg, read_yaml_with_base(config_file), str(config_file))
    if len(opts) % 2:
        raise ConfigError(
            f"KEY VALUE pairs expected, got {len(opts)} words: {' '.join(map(str, opts))}",
            where=_COMMAND_LINE,
            fix="give every key one value; quote values with blanks",
        )
    for name, value in zip(opts[0::2], opts[1::2], strict=True):
        content: Any = value
        for part in reversed(str(name).split(".")):
            content = {part: content}
        _merge(cfg, content, _COMMAND_LINE)
    return cfg


def finish_config(cfg: CfgNode, *, training: bool) -> None:
    """Write the keys that follow from others; called once, before the checks and the freeze.

    Doing it again changes nothing.

    Args:
        cfg: complete, not frozen; changed in place.
        training: whether a training is prepared.

    Raises:
        ConfigError: values that nothing follows from.
    """
    for _, finish in sorted(FINISH_CONFIG_REGISTRY):
        finish(cfg, training)


def validate_config(cfg: CfgNode, *, training: bool) -> None:
    """Run every registered check; the first impossible combination raises ConfigError.

    The configuration stays as it is.
    """
    for _, check in sorted(CONFIG_CHECK_REGISTRY):
        check(cfg, training)


def _merge(cfg: CfgNode, content: dict[str, Any], where: str) -> None:
    prepared = _prepare(content, cfg, cfg, where)
    try:
        cfg.merge_from_other_cfg(type(cfg)(prepared))
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise ConfigError(_first_line(error), where=where) from error


def _prepare(
    content: dict[str, Any], node: CfgNode, cfg: CfgNode, where: str, prefix: str = ""
) -> dict[str, Any]:
    """The content with known keys only, blocks where blocks belong, and text as text."""
    prepared: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key not in node:
            if not _has_an_answer(cfg, name):
                raise _unknown(cfg, name, value, where)
            prepared[key] = value
        elif isinstance(value, dict) != isinstance(node[key], CfgNode):
            expected, got = (
                ("one value", "a block") if isinstance(value, dict) else ("a block", repr(value))
            )
            raise ConfigError(f"{name} is {expected}, not {got}", where=where)
        elif isinstance(value, dict):
            prepared[key] = _prepare(value, node[key], cfg, where, f"{name}.")
        elif isinstance(node[key], float):
            prepared[key] = _as_float(value)
        else:
            prepared[key] = _as_text(value) if isinstance(node[key], str) else value
    return prepared


def _as_float(value: Any) -> Any:
    """A whole number as the float that yacs insists on: ``NORM_TEMP: 50``."""
    try:
        evaluated = ast.literal_eval(value) if isinstance(value, str) else value
        return float(evaluated) if type(evaluated) is int else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return value


def _as_text(value: Any) -> Any:
    """Text that yacs, which evaluates it as Python, takes for text: not '"a", "b"' for a tuple."""
    if not isinstance(value, str):
        return value
    try:
        evaluated = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return repr(value)
    return value if evaluated is None or isinstance(evaluated, str) else repr(value)


def _has_an_answer(cfg: CfgNode, name: str) -> bool:
    """Whether yacs knows what became of a key: dropped (it warns) or renamed (it refuses)."""
    dropped: set[str] = cfg.__dict__.get(CfgNode.DEPRECATED_KEYS, set())
    renamed: dict[str, Any] = cfg.__dict__.get(CfgNode.RENAMED_KEYS, {})
    return name in dropped or name in renamed


def _unknown(cfg: CfgNode, name: str, value: Any, where: str) -> ConfigError:
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        name = f"{name}.{key}"
    known = list(_keys(cfg))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        leaf = name.rsplit(".", 1)[-1]
        near = [other for other in sorted(known) if other.rsplit(".", 1)[-1] == leaf][:1]
    return ConfigError(
        f"unknown config key {name}",
        where=where,
        fix=f"did you mean {near[0]}?" if near else "docs/config.md lists every key",
    )


def _keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Full names of all leaves, and of blocks, in order."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict):
            yield from _keys(value, f"{name}.")


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
