"""The losses of a predictor, as the configuration names them."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode


@dataclass(frozen=True)
class PredictorOptions:
    """Losses of a predictor; names as in the configuration.

    Args:
        sigmoid: one sigmoid per class, else softmax.
        federated_size: classes per step of the federated loss; None = all classes.
        count_background: the background takes one of the places of the federated loss.
        ignore_unseen: no gradient to classes without training images.
        box_loss: ``smooth_l1`` or ``giou``.
        box_loss_beta: where smooth L1 turns linear; 0 = L1.
        image_label_loss: one of :mod:`detic_ext.losses.factory`.
        image_loss_weight: factor of image-label and caption loss together.
        ignore_last: ``max_size`` leaves out an image's last region.
        softmax_weak_loss: softmax on the chosen region.
        caption_weight: factor of the caption loss inside of that.
        negative_caption_weight: weight of other images' captions.
        proposal_branch: second branch that scores regions (wsddn).
        prior_prob: initial score of an ordinary sigmoid classifier.
    """

    sigmoid: bool = True
    federated_size: int | None = None
    count_background: bool = True
    ignore_unseen: bool = False
    box_loss: str = "smooth_l1"
    box_loss_beta: float = 0.0
    image_label_loss: str = "max_size"
    image_loss_weight: float = 0.1
    ignore_last: bool = True
    softmax_weak_loss: bool = False
    caption_weight: float = 1.0
    negative_caption_weight: float = 1.0
    proposal_branch: bool = False
    prior_prob: float = 0.01

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PredictorOptions:
        """Read the options from a configuration."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return cls(
            sigmoid=head.USE_SIGMOID_CE,
            federated_size=head.FED_LOSS_NUM_CAT if head.USE_FED_LOSS else None,
            count_background=head.FED_LOSS_COUNT_BACKGROUND,
            ignore_unseen=head.IGNORE_ZERO_CATS,
            box_loss=head.BBOX_REG_LOSS_TYPE,
            box_loss_beta=head.SMOOTH_L1_BETA,
            image_label_loss=head.IMAGE_LABEL_LOSS,
            image_loss_weight=head.IMAGE_LOSS_WEIGHT,
            # an appended box is always the largest, and there to be left out
            ignore_last=head.MAX_SIZE_IGNORE_LAST or head.ADD_IMAGE_BOX,
            softmax_weak_loss=head.SOFTMAX_WEAK_LOSS,
            caption_weight=head.CAPTION_WEIGHT,
            # published: the captions of one process are negatives of full weight
            negative_caption_weight=head.NEG_CAP_WEIGHT if cfg.MODEL.SYNC_CAPTION_BATCH else 1.0,
            proposal_branch=head.WITH_SOFTMAX_PROP,
            prior_prob=head.PRIOR_PROB,
        )

    @property
    def needs_frequencies(self) -> bool:
        """Whether a loss reads the class frequencies."""
        return self.federated_size is not None or self.ignore_unseen
