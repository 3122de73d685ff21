"""RegionCLIP: region-text pretraining and open-vocabulary detection (docs/regionclip.md)."""

import ext_common  # noqa: F401 - repairs detectron2 0.6 before it is imported

# isort: split
# importing a module registers what it defines
from regionclip_ext import checkpoint, config, config_checks, evaluation  # noqa: F401
from regionclip_ext.data import pair_loader  # noqa: F401
from regionclip_ext.evaluation import datasets  # noqa: F401
from regionclip_ext.modeling import clip_resnet, meta_arch, roi_heads  # noqa: F401
from regionclip_ext.modeling.pretrain import config_checks as _pretrain_checks  # noqa: F401
from regionclip_ext.modeling.pretrain import meta_arch as _pretrain  # noqa: F401
from regionclip_ext.modeling.pretrain import options, region_head  # noqa: F401
