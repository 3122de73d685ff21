"""Frozen-backbone detection: NAS-FPN, Cascade, adapters, Copy-Paste (docs/frozen_backbone.md)."""

import ext_common  # noqa: F401 - repairs detectron2 0.6 before it is imported

# isort: split
# importing a module registers what it defines
from frozen_backbone_ext import (  # noqa: F401
    audit,
    config,
    config_checks,
    model_setup,
    schedule,
    second_stage,
    train_hooks,
)
from frozen_backbone_ext.data import copy_paste_loader  # noqa: F401
from frozen_backbone_ext.modeling import (  # noqa: F401
    adapted_backbone,
    box_head,
    cascade,
    pyramid_backbone,
    rpn_head,
)
