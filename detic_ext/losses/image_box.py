"""``image``: the whole-image box answers ("image-box" in the paper)."""

from __future__ import annotations

from typing import ClassVar

from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection
from detic_ext.losses.image_label_loss import BoxSelectedLoss


class ImageBoxLoss(BoxSelectedLoss):
    """The last region of each image, which must be the whole-image box (ADD_IMAGE_BOX)."""

    needs_image_box: ClassVar[bool] = True

    def select(self, batch: ImageLabelBatch) -> Selection:
        """The last region of each answering image."""
        return batch.select_per_image(batch.image_regions()[0][:, -1])
