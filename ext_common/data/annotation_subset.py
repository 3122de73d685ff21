"""A random share of an annotation file's images, for training with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ext_common.errors import ConfigError, DatasetError


def share_of_images(
    content: Mapping[str, Any], percent: float, *, seed: int = 0, where: str = ""
) -> dict[str, Any]:
    """The annotations of ``percent`` % of the images, drawn without regard to their content.

    What is drawn depends on the image ids and the seed only, not on their order in the file. With
    one seed a smaller share is contained in a larger one.

    Args:
        content: of a COCO or LVIS file; not changed.
        percent: above 0, at most 100; the number of images is rounded, and at least 1.
        seed: of the draw.
        where: the file, for messages.

    Returns:
        The same content with fewer ``images`` and ``annotations``, in their old order; everything
        else as it is.

    Raises:
        ConfigError: another percentage.
        DatasetError: no images.
    """
    if not 0 < percent <= 100:
        raise ConfigError(f"{percent:g} % of the images", where="percent", fix="above 0, up to 100")
    ids = sorted(image["id"] for image in content.get("images", ()))
    if not ids:
        raise DatasetError("no images to choose from", where=where)
    count = max(round(len(ids) * percent / 100), 1)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
    kept = {ids[place] for place in order[:count]}
    images = [image for image in content["images"] if image["id"] in kept]
    boxes = [box for box in content.get("annotations", ()) if box["image_id"] in kept]
    return {**content, "images": images, "annotations": boxes}
