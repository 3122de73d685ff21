"""What to log about an image-label loss, as tensors: the reader decides when to wait for them.

Names are those of the Detic specification section 4 ("Logged scalars").
"""

from __future__ import annotations

from torch import Tensor

from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.image_label_loss import ImageLabelResult


def image_label_statistics(
    batch: ImageLabelBatch, result: ImageLabelResult, loss_caption: Tensor | None = None
) -> dict[str, Tensor]:
    """Detached scalars; all but the losses describe the last label of the last image with boxes.

    Args:
        batch: regions and labels.
        result: of an image-label loss on this batch.
        loss_caption: of the caption loss, before weighting.

    Returns:
        ``stats_l_image`` (before weighting), ``stats_l_caption`` if given, and, if any image has
        boxes and labels: ``pool_stats`` (number of the chosen region within its image),
        ``stats_select_size`` (its share of the image area), ``stats_select_x``,
        ``stats_select_y`` (its centre as a share of width and height),
        ``stats_max_label_score`` (its logit at the label), ``stats_label`` (the label).
    """
    stats = {"stats_l_image": result.loss.detach()}
    if loss_caption is not None:
        stats["stats_l_caption"] = loss_caption.detach()
    if not batch.answering:
        return stats
    image = batch.answering[-1]
    height, width = batch.image_sizes[image]
    row = result.selection.rows_M[result.selection.slot_P[-1:]]
    x1, y1, x2, y2 = batch.boxes_R4.detach()[row][0].unbind()
    return stats | {
        "pool_stats": row[0] - batch.first_rows[image],
        "stats_select_size": (x2 - x1) * (y2 - y1) / (height * width),
        "stats_select_x": (x1 + x2) / (2 * width),
        "stats_select_y": (y1 + y2) / (2 * height),
        "stats_max_label_score": result.label_logit_P[-1],
        "stats_label": result.selection.label_P[-1],
    }
