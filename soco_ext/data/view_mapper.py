"""From a dataset dict to a sample of SoCo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import DatasetError
from ext_common.images import DEFAULT_MAX_PIXELS, read_image
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.proposal_lookup import ProposalLookup, image_name
from soco_ext.data.view_maker import ViewMaker

ReadTar = Callable[[Mapping[str, Any]], NDArray[np.uint8]]


class ViewMapper:
    """Reads an image and makes its views; all randomness comes from Python's generator.

    Args:
        maker: makes views.
        lookup: finds proposals.
        roots: folder of the images of each dataset, by ``dataset_source``; not looked at without a
            file of proposals.
        tars: reads the images of datasets in archives, by ``dataset_source``.
        max_pixels: larger images are refused.
    """

    def __init__(
        self,
        maker: ViewMaker,
        lookup: ProposalLookup,
        *,
        roots: Sequence[str] = ("",),
        tars: Mapping[int, ReadTar] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.maker = maker
        self.lookup = lookup
        self.roots = tuple(roots)
        self.tars = dict(tars or {})
        self.max_pixels = max_pixels

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """``views`` and ``pairs`` (see ``ViewMaker``), ``image_id`` and ``file_name``.

        Raises:
            ImageError: the image cannot be read.
            DatasetError: no way to read it.
            ConfigError: the file of proposals is not one of these images.
        """
        source = int(record.get("dataset_source", 0))
        # only a file knows images by their names; not every dataset has a folder to name them from
        name = image_name(record, self.roots[source]) if self.lookup.file is not None else ""
        image_HW3 = self._read(record, source)
        draws = GeneratorDraws.of_sample()
        boxes_K4 = self.lookup(name, (image_HW3.shape[0], image_HW3.shape[1]), draws.generator)
        sample = self.maker(image_HW3, boxes_K4, draws)
        sample["image_id"] = record.get("image_id")
        sample["file_name"] = record.get("file_name", record.get("image_name"))
        return sample

    def _read(self, record: Mapping[str, Any], source: int) -> NDArray[np.uint8]:
        if "file_name" in record:
            return read_image(record["file_name"], format="RGB", max_pixels=self.max_pixels)
        if source not in self.tars:
            raise DatasetError(
                f"image {record.get('image_id')!r} has no file_name",
                fix="use a dataset of type image_folder, image_tars, coco or lvis",
            )
        return self.tars[source](record)
