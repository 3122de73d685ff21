"""SoCo: object-level contrastive pretraining for detection. Not built yet; see README.md."""

import ext_common  # noqa: F401 - repairs detectron2 0.6 before it is imported
