"""Detic: detection with image-level supervision and an open vocabulary (docs/detic.md)."""

import ext_common  # noqa: F401 - repairs detectron2 0.6 before it is imported

# isort: split
# importing a module registers what it defines
from detic_ext import config, config_checks, evaluation  # noqa: F401
from detic_ext.data import multi_dataset_loader  # noqa: F401
from detic_ext.modeling import meta_arch, roi_heads  # noqa: F401
from detic_ext.modeling.centernet import detector, generator  # noqa: F401
from detic_ext.modeling.deformable_detr import config_checks as _detr_checks  # noqa: F401
from detic_ext.modeling.deformable_detr import meta_arch as _detr  # noqa: F401
from ext_common.data import dataset_checks, loader  # noqa: F401
from ext_common.modeling import bifpn, fpn, swin, timm_backbone  # noqa: F401
