"""Ground-truth boxes as regions (specification 5.3), also at test, where mappers drop annotations.

Legend: R boxes of an image.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        datasets: registered names to look images up in, by ``image_id`` and, where a batch has it,
            ``file_name``; read when first needed.
    """

    def __init__(self, datasets: Sequence[str] = ()) -> None:
        self._datasets = tuple(datasets)
        self._known: dict[Any, list[KnownImage]] | None = None

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
            DatasetError: an image that no dataset has, or that two have with other boxes.
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
        if self._known is None:
            self._known = _known_images(self._datasets)
            logger.info("ground-truth boxes of %d images", sum(map(len, self._known.values())))
        known = self._known.get(item.get("image_id"), [])
        if "file_name" in item:  # test sets may count their images alike
            known = [image for image in known if image.file_name in (None, item["file_name"])]
        if not known:
            raise DatasetError(
                f"no ground-truth boxes for image {item.get('image_id')!r}",
                where=", ".join(self._datasets) or "DATASETS.TEST",
                fix="name its dataset in DATASETS.TEST, or set MODEL.CLIP.CROP_REGION_TYPE RPN",
            )
        first = known[0]
        for other in known[1:]:
            if not torch.equal(first.boxes_R4, other.boxes_R4):
                raise DatasetError(
                    f"{first.dataset} and {other.dataset} have other boxes for image "
                    f"{item.get('image_id')!r}",
                    where="DATASETS.TEST",
                    fix="evaluate them one after the other",
                )
        return first.boxes_R4


@dataclass(frozen=True)
class KnownImage:
    """Boxes that a dataset has for an image.

    Attributes:
        dataset: its name.
        file_name: None where the records have none.
        boxes_R4: XYXY, pixels of the file; crowds are left out.
    """

    dataset: str
    file_name: str | None
    boxes_R4: Tensor


def _known_images(datasets: Sequence[str]) -> dict[Any, list[KnownImage]]:
    """By image id."""
    known: dict[Any, list[KnownImage]] = defaultdict(list)
    for name in datasets:
        for record in DatasetCatalog.get(name):
            boxes = [
                BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
                for one in record.get("annotations", ())
                if not one.get("iscrowd", 0)
            ]
            boxes_R4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            image = KnownImage(name, record.get("file_name"), boxes_R4)
            known[record["image_id"]].append(image)
    return known
