"""Numbers of a pretraining step that show an unsuitable pool, threshold or caption file.

Legend: R regions, C concepts.
"""

from __future__ import annotations

import logging

import torch
from detectron2.utils.events import get_event_storage

from ext_common.hooks import LOG_PERIOD
from regionclip_ext.concepts.matching import ConceptMatch
from regionclip_ext.modeling.pretrain.batch import PretrainBatch

logger = logging.getLogger(__name__)


class PretrainStatistics:
    """Writes to detectron2's event storage, below ``pretrain/``.

    Every 20 iterations, as reading them waits for the device: ``confident_regions`` (share of
    regions above the threshold), ``label_confidence`` (mean probability of the pseudo label),
    ``label_entropy`` (of the soft labels, mean, nats; the logarithm of C is the most) and
    ``concepts_seen`` (different pseudo labels in the batch of this process). ``cut_captions`` is the
    share of captions since the start that were longer than the text encoder's context.
    """

    def __init__(self) -> None:
        self._captions = 0
        self._cut = 0

    def __call__(self, batch: PretrainBatch, match: ConceptMatch | None) -> None:
        """Count a batch, and report where it is time to."""
        self._count_captions(batch)
        storage = get_event_storage()
        if storage.iter % LOG_PERIOD:
            return
        if self._captions:
            storage.put_scalar("pretrain/cut_captions", self._cut / self._captions)
        if match is None or not len(match.labels_R):
            return
        entropy_R = -torch.xlogy(match.probs_RC, match.probs_RC).sum(dim=1)
        kinds = match.labels_R[match.kept_R].unique()
        confident_R = match.confident_R.float()
        means = torch.stack([confident_R.mean(), match.confidence_R.mean(), entropy_R.mean()])
        names = ("confident_regions", "label_confidence", "label_entropy")
        for name, value in zip(names, means.tolist(), strict=True):
            storage.put_scalar(f"pretrain/{name}", value)
        storage.put_scalar("pretrain/concepts_seen", len(kinds))

    def _count_captions(self, batch: PretrainBatch) -> None:
        for item in batch.items:
            if "caption_length" not in item:
                continue  # a batch that no loader of pairs made
            self._captions += 1
            context = len(item["tokens"])
            if item["caption_length"] <= context:
                continue
            self._cut += 1
            if self._cut == 1:
                logger.warning(
                    "the caption of image %s has %d tokens, of which the text encoder takes %d; "
                    "how many captions are cut is in the metrics (pretrain/cut_captions)",
                    item.get("image_id", ""),
                    item["caption_length"],
                    context,
                )
