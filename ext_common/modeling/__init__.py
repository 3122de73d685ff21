"""Model parts that several detectors share. Importing this registers the backbone builders."""

from ext_common.modeling import bifpn, fpn, swin, timm_backbone  # noqa: F401 - registers backbones
