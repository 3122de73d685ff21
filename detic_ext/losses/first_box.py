"""``first``: the region of highest objectness answers ("max-object-score" in the paper)."""

from __future__ import annotations

from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection
from detic_ext.losses.image_label_loss import BoxSelectedLoss


class FirstLoss(BoxSelectedLoss):
    """The first region of each image; regions come by descending objectness."""

    def select(self, batch: ImageLabelBatch) -> Selection:
        """The first region of each answering image."""
        return batch.select_per_image(batch.image_regions()[0][:, 0])
