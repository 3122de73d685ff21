"""Model parts that several detectors share. Importing this registers the backbone builders."""

from ext_common.modeling import fpn, timm_backbone  # noqa: F401 - registers backbones
