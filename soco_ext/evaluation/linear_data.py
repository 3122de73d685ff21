"""Images for the linear evaluation: random crops for training, centre crops at test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_spec import load_dataset
from ext_common.data.fetching import SampleFetcher
from ext_common.data.indexing import Indexing
from ext_common.data.loader import (
    TestLoader,
    TrainLoader,
    loader_seed,
    make_train_loader,
    plain_plan,
)
from ext_common.data.records import load_records, serialised
from ext_common.data.sampling import PermutationStream
from ext_common.errors import DatasetError
from ext_common.images import read_image
from ext_common.registries import TRAIN_LOADER_REGISTRY
from soco_ext.data.colour import to_array


class LinearMapper:
    """Makes ``image`` (float32 [3, S, S], normalised RGB) and ``label`` of a record.

    Args:
        size: S, pixels.
        crop: least share of the image's area in a training crop; None = test.
        resize: shorter side at test before the centre crop.
        max_pixels: larger images are refused before decoding.
    """

    def __init__(
        self, *, size: int, crop: float | None = None, resize: int = 256, max_pixels: int
    ) -> None:
        self._max_pixels = max_pixels
        if crop is None:
            geometry = [v2.Resize(resize, antialias=True), v2.CenterCrop(size)]
        else:
            scale = (crop, 1.0)
            geometry = [
                v2.RandomResizedCrop(size, scale, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        self._transform = v2.Compose(geometry)

    @classmethod
    def from_config(cls, cfg: CfgNode, *, training: bool) -> LinearMapper:
        """Keys of ``SOCO.LINEAR``."""
        linear = cfg.SOCO.LINEAR
        return cls(
            size=linear.IMAGE_SIZE,
            crop=linear.CROP if training else None,
            resize=linear.RESIZE_SIZE,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The sample of one record.

        Raises:
            DatasetError: not exactly one class.
            ImageError: an image that cannot be read.
        """
        labels = record.get("pos_category_ids", ())
        if len(labels) != 1:
            raise DatasetError(
                f"{len(labels)} classes where one is needed", where=str(record.get("file_name"))
            )
        pixels = read_image(record["file_name"], format="RGB", max_pixels=self._max_pixels)
        cropped = self._transform(Image.fromarray(pixels))
        image_3SS: Tensor = torch.from_numpy(to_array(cropped))
        return {"image": image_3SS, "label": int(labels[0]), "file_name": record["file_name"]}


def build_linear_loader(cfg: CfgNode) -> TrainLoader:
    """``DATALOADER.SAMPLER_TRAIN LinearImages``: the class folders of ``DATASETS.TRAIN``.

    Raises:
        ConfigError, DatasetError: settings or datasets that cannot work.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False  # all crops have one size
    records = load_records(cfg)
    plan = plain_plan(cfg, records, PermutationStream(len(records), loader_seed(cfg)))
    return make_train_loader(cfg, records, LinearMapper.from_config(cfg, training=True), plan)


def build_linear_test_loader(cfg: CfgNode, name: str, batch_size: int = 32) -> TestLoader:
    """Every image of a dataset once, divided among the processes.

    Raises:
        DatasetError: an unknown dataset.
    """
    require_dataset(name, where="SOCO.LINEAR.TEST")
    records = serialised(load_dataset(name, Indexing.from_config(cfg)))
    fetcher = SampleFetcher(records, LinearMapper.from_config(cfg, training=False), seed=0)
    return TestLoader(fetcher, batch_size=batch_size, num_workers=cfg.DATALOADER.NUM_WORKERS)


TRAIN_LOADER_REGISTRY._do_register("LinearImages", build_linear_loader)
