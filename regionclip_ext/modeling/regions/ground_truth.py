"""Ground-truth boxes as regions (specification 5.3), also at test, where mappers drop annotations.

Legend: R boxes of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode, Instances
from torch import Tensor

from ext_common.errors import DatasetError
from regionclip_ext.modeling.regions.source import as_regions

logger = logging.getLogger(__name__)


class GroundTruthRegions:
    """Boxes that come with a batch, or those that its test sets have for its images.

    Args:
        datasets: registered names to look images up in, by ``image_id``; read when first needed.
    """

    def __init__(self, datasets: Sequence[str] = ()) -> None:
        self._datasets = tuple(datasets)
        self._boxes: dict[Any, Tensor] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GroundTruthRegions:
        """Look images up in ``DATASETS.TEST``."""
        return cls(cfg.DATASETS.TEST)

    def propose(
        self, batch: Sequence[Mapping[str, Any]], device: torch.device | str
    ) -> list[Instances]:
        """Boxes of a batch's images at the size of the model's input; logits are 0.

        Args:
            batch: detectron2's dicts; ``instances`` with ``gt_boxes``, or ``image_id``, ``height``
                and ``width`` of an image of the datasets.
            device: where the boxes go.

        Raises:
            DatasetError: an image that no dataset has.
        """
        found = []
        for item in batch:
            image_size = (int(item["image"].shape[-2]), int(item["image"].shape[-1]))
            if "instances" in item:
                boxes_R4 = item["instances"].gt_boxes.tensor.clone()
            else:
                boxes_R4 = self._of_image(item)
                scale = boxes_R4.new_tensor(
                    [image_size[1] / item["width"], image_size[0] / item["height"]] * 2
                )
                boxes_R4 = boxes_R4 * scale
            found.append(as_regions(boxes_R4.to(device), image_size))
        return found

    def _of_image(self, item: Mapping[str, Any]) -> Tensor:
        if self._boxes is None:
            self._boxes = dict(
                pair
                for name in self._datasets
                for pair in _boxes_by_image(DatasetCatalog.get(name))
            )
            logger.info("ground-truth boxes of %d images", len(self._boxes))
        boxes_R4 = self._boxes.get(item.get("image_id"))
        if boxes_R4 is None:
            raise DatasetError(
                f"no ground-truth boxes for image {item.get('image_id')!r}",
                where=", ".join(self._datasets) or "DATASETS.TEST",
                fix="name its dataset in DATASETS.TEST, or set MODEL.CLIP.CROP_REGION_TYPE RPN",
            )
        return boxes_R4


def _boxes_by_image(records: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Tensor]]:
    """Image id and boxes [R, 4], XYXY pixels of the file, of every record; crowds are left out."""
    pairs = []
    for record in records:
        boxes = [
            BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
            for one in record.get("annotations", ())
            if not one.get("iscrowd", 0)
        ]
        boxes_R4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        pairs.append((record["image_id"], boxes_R4))
    return pairs
