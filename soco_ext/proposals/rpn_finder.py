"""Boxes of a trained detector's region proposal network.

Legend: K boxes; H, W rows and columns of the picture as the detector takes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import ConfigError
from ext_common.modeling.build import build_model
from ext_common.transforms import build_augmentations


class RpnFinder:
    """The proposals of ``MODEL.PROPOSAL_GENERATOR`` at test time, in the pixels of the picture.

    Args:
        model: a detector with ``preprocess_image``, ``backbone`` and ``proposal_generator``.
        augmentations: test-time resizing.
        image_format: channel order of the detector, "RGB" or "BGR".
        most: the boxes of the highest scores; None = all that the network gives.

    Raises:
        ConfigError: the model has no proposal network.
    """

    name = "rpn"
    needs_pixels = True

    def __init__(
        self,
        model: nn.Module,
        augmentations: list[Any],
        image_format: str,
        most: int | None = None,
    ) -> None:
        if getattr(model, "proposal_generator", None) is None:
            raise ConfigError(
                f"{type(model).__name__} has no proposal network",
                where="MODEL.PROPOSAL_GENERATOR",
                fix="use the configuration of a two-stage detector",
            )
        self.model: Any = model.eval()
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.most = most

    @classmethod
    def from_config(cls, cfg: CfgNode, *, most: int | None = None) -> RpnFinder:
        """The detector of ``cfg`` with ``cfg.MODEL.WEIGHTS``."""
        model = build_model(cfg)
        load_model_weights(model, cfg.MODEL.WEIGHTS)
        return cls(model, build_augmentations(cfg, False), cfg.INPUT.FORMAT, most)

    def __call__(
        self, name: str, size_hw: tuple[int, int], image_HW3: NDArray[np.uint8] | None
    ) -> NDArray[np.float64]:
        """float64 [K, 4] x, y, width, height, highest score first."""
        if image_HW3 is None:
            raise AssertionError("this finder looks at pixels")
        pixels = image_HW3 if self.image_format == "RGB" else image_HW3[:, :, ::-1]
        resized = T.AugInput(np.ascontiguousarray(pixels))
        self.augmentations(resized)
        image_CHW = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        with torch.no_grad():
            images = self.model.preprocess_image([{"image": image_CHW}])
            features = self.model.backbone(images.tensor)
            found = self.model.proposal_generator(images, features, None)[0][0]
        boxes = found.proposal_boxes
        boxes.scale(size_hw[1] / image_CHW.shape[2], size_hw[0] / image_CHW.shape[1])
        boxes.clip(size_hw)
        rects_K4 = boxes.tensor[: self.most].cpu().numpy().astype(np.float64)
        rects_K4[:, 2:] -= rects_K4[:, :2]
        return rects_K4
