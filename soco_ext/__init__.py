"""SoCo: object-level contrastive pretraining for detection (docs/soco.md)."""

import ext_common  # noqa: F401 - repairs detectron2 0.6 before it is imported

# isort: split
# importing a module registers what it defines
from soco_ext import config, config_checks, hooks  # noqa: F401
from soco_ext.checkpoint import export, export_mmdet  # noqa: F401
from soco_ext.data import loader  # noqa: F401
from soco_ext.evaluation import detection, linear, linear_data, linear_score  # noqa: F401
from soco_ext.modeling import c4_model, pyramid_model, res5_extra_norm  # noqa: F401
from soco_ext.solver import build  # noqa: F401
