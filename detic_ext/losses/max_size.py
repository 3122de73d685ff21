"""``max_size``: the largest region answers for the image's labels (Detic's own choice)."""

from __future__ import annotations

from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection
from detic_ext.losses.image_label_loss import BoxSelectedLoss


class MaxSizeLoss(BoxSelectedLoss):
    """Largest area among all regions but an image's last, which is taken for the image box.

    As published, the last region is left out whether or not an image box was appended (spec 12.7);
    an image's only region is used. Of equal areas the first counts.

    Args:
        softmax: as in the base class.
        ignore_last: leave out the last region (MAX_SIZE_IGNORE_LAST).
    """

    def __init__(self, *, softmax: bool = False, ignore_last: bool = True) -> None:
        super().__init__(softmax=softmax)
        self.ignore_last = ignore_last

    def select(self, batch: ImageLabelBatch) -> Selection:
        """The largest region of each answering image."""
        rows_MN, valid_MN = batch.image_regions(skip_last=self.ignore_last)
        boxes_MN4 = batch.boxes_R4.detach()[rows_MN]
        size_MN2 = boxes_MN4[..., 2:] - boxes_MN4[..., :2]
        area_MN = size_MN2.prod(dim=-1).masked_fill(~valid_MN, -1.0)
        return batch.select_per_image(rows_MN.gather(1, area_MN.argmax(1, keepdim=True))[:, 0])
