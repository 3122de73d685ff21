"""Where the four packages announce their parts, so that one launcher serves them all.

Importing a package registers its parts; nothing else happens at import. detectron2's own registries
(backbones, ROI heads, meta-architectures) hold the model parts; these hold the rest.
"""

from __future__ import annotations

from fvcore.common.registry import Registry

CONFIG_REGISTRY = Registry("CONFIG")
"""``add_*_config(cfg) -> None``: adds a package's keys and defaults."""

FINISH_CONFIG_REGISTRY = Registry("FINISH_CONFIG")
"""``finish(cfg, training: bool) -> None``: writes keys that follow from others (a schedule in images
as iterations), once, when all files and command-line pairs are merged and before the checks."""

CONFIG_CHECK_REGISTRY = Registry("CONFIG_CHECK")
"""``check_*(cfg, training: bool) -> None``: raises ConfigError for a combination that cannot work.
Checks change nothing."""

TRAIN_LOADER_REGISTRY = Registry("TRAIN_LOADER")
"""Key: a value of ``DATALOADER.SAMPLER_TRAIN``. ``build(cfg) -> iterable of batches``."""

EVALUATOR_REGISTRY = Registry("EVALUATOR")
"""Key: ``evaluator_type`` of a dataset's metadata. ``build(cfg, name, folder) -> DatasetEvaluator``."""

MODEL_SETUP_REGISTRY = Registry("MODEL_SETUP")
"""``setup(cfg, model) -> None``: changes a built model before its weights are loaded (freezing)."""

TRAIN_HOOK_REGISTRY = Registry("TRAIN_HOOK")
"""``build(cfg, trainer) -> list[HookBase]``: a package's own hooks; an empty list where unused."""

OPTIMIZER_REGISTRY = Registry("OPTIMIZER")
"""Key: a value of ``SOLVER.OPTIMIZER``. ``build(cfg, model) -> torch.optim.Optimizer``."""

LR_SCHEDULE_REGISTRY = Registry("LR_SCHEDULE")
"""Key: a value of ``SOLVER.LR_SCHEDULER_NAME``. ``build(cfg, optimizer) -> LRScheduler``."""

WEIGHT_EXPORT_REGISTRY = Registry("WEIGHT_EXPORT")
"""Key: ``convert_weights.py --export``. ``export(tensors by name) -> ExportedWeights``."""

AUDIT_REGISTRY = Registry("AUDIT")
"""``train_net.py --audit-NAME``. ``audit(trainer) -> report``, printed; raises if it fails."""
