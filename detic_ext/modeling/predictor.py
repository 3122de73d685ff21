"""Class scores, box deltas and losses of one cascade stage (specification sections 2 to 4).

Shapes: R regions of a batch, F their features, C classes, K = C + 1 columns (background last),
M chosen regions, S sampled columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.box_regression import BoxRegressionLoss
from detic_ext.losses.classify import Classify
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.image_label_loss import ImageLabelResult
from detic_ext.losses.statistics import image_label_statistics
from detic_ext.modeling.supervision import Supervision
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier

# host scalars cost a synchronisation, so statistics are taken as often as writers print
STATISTICS_PERIOD = 20


@dataclass(frozen=True)
class PredictorOptions:
    """Losses of a predictor; names as in the configuration.

    Args:
        sigmoid: one sigmoid per class, else softmax.
        federated_size: classes per step of the federated loss; None = all classes.
        ignore_unseen: no gradient to classes without training images.
        box_loss: ``smooth_l1`` or ``giou``.
        box_loss_beta: where smooth L1 turns linear; 0 = L1.
        image_label_loss: one of :mod:`detic_ext.losses.factory`.
        image_loss_weight: its factor.
        softmax_weak_loss: softmax on the chosen region.
        proposal_branch: second branch that scores regions (wsddn).
        prior_prob: initial score of an ordinary sigmoid classifier.
    """

    sigmoid: bool = True
    federated_size: int | None = None
    ignore_unseen: bool = False
    box_loss: str = "smooth_l1"
    box_loss_beta: float = 0.0
    image_label_loss: str = "max_size"
    image_loss_weight: float = 0.1
    softmax_weak_loss: bool = False
    proposal_branch: bool = False
    prior_prob: float = 0.01

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PredictorOptions:
        """Read the options from a configuration."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return cls(
            sigmoid=head.USE_SIGMOID_CE,
            federated_size=head.FED_LOSS_NUM_CAT if head.USE_FED_LOSS else None,
            ignore_unseen=head.IGNORE_ZERO_CATS,
            box_loss=head.BBOX_REG_LOSS_TYPE,
            box_loss_beta=head.SMOOTH_L1_BETA,
            image_label_loss=head.IMAGE_LABEL_LOSS,
            image_loss_weight=head.IMAGE_LOSS_WEIGHT,
            softmax_weak_loss=head.SOFTMAX_WEAK_LOSS,
            proposal_branch=head.WITH_SOFTMAX_PROP,
            prior_prob=head.PRIOR_PROB,
        )


class DeticPredictor(nn.Module):
    """Classifier and class-agnostic box regressor of one stage.

    Keys in a state dict: ``cls_score.*``, ``bbox_pred.{0,2}.*`` (``bbox_pred.*`` with an ordinary
    classifier), buffer ``freq_weight`` where the losses need it, ``prop_score.{0,2}.*``.

    Args:
        input_dim: F.
        num_classes: C.
        box2box_transform: of this stage.
        classifier: by text embeddings; None = an ordinary linear layer of C + 1 outputs.
        freq_weight_C: class frequencies, where a loss needs them.
        options: see :class:`PredictorOptions`.
    """

    freq_weight: Tensor | None

    def __init__(
        self,
        *,
        input_dim: int,
        num_classes: int,
        box2box_transform: Box2BoxTransform,
        classifier: ZeroShotClassifier | None = None,
        freq_weight_C: Tensor | None = None,
        options: PredictorOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or PredictorOptions()
        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.cls_score: nn.Module
        self.bbox_pred: nn.Module
        if classifier is not None:
            self.cls_score = classifier
            self.bbox_pred = _two_layers(input_dim, 4)
        else:
            self.cls_score = nn.Linear(input_dim, num_classes + 1)
            self.bbox_pred = nn.Linear(input_dim, 4)
            self._init_ordinary()
        self.prop_score = (
            _two_layers(input_dim, num_classes + 1) if self.options.proposal_branch else None
        )
        self.register_buffer("freq_weight", freq_weight_C)
        self.classification_loss = BoxClassificationLoss(
            softmax=not self.options.sigmoid,
            federated_size=self.options.federated_size,
            ignore_unseen=self.options.ignore_unseen,
        )
        weights = cast("tuple[float, float, float, float]", tuple(box2box_transform.weights))
        self.regression_loss = BoxRegressionLoss(
            weights=weights, kind=self.options.box_loss, beta=self.options.box_loss_beta
        )
        self.weak_loss = build_image_label_loss(
            self.options.image_label_loss, softmax=self.options.softmax_weak_loss
        )

    def _init_ordinary(self) -> None:
        linear = cast("nn.Linear", self.cls_score)
        nn.init.normal_(linear.weight, std=0.01)
        prior = self.options.prior_prob
        nn.init.constant_(
            linear.bias, -math.log((1 - prior) / prior) if self.options.sigmoid else 0.0
        )
        box = cast("nn.Linear", self.bbox_pred)
        nn.init.normal_(box.weight, std=0.001)
        nn.init.zeros_(box.bias)

    @property
    def embedding_dim(self) -> int | None:
        """Width of the class embeddings; None with an ordinary classifier."""
        if isinstance(self.cls_score, ZeroShotClassifier):
            return self.cls_score.linear.out_features
        return None

    @property
    def normalizes_classifier(self) -> bool:
        """Whether class embeddings are compared by direction."""
        return isinstance(self.cls_score, ZeroShotClassifier) and self.cls_score.normalize

    def regress(self, features_RF: Tensor) -> Tensor:
        """Box deltas [R, 4] for ``box2box_transform``."""
        deltas_R4: Tensor = self.bbox_pred(features_RF)
        return deltas_R4

    def classify_with(self, features_RF: Tensor) -> Classify:
        """Logits of these regions, computed for the rows and columns that a loss asks for."""

        def classify(rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
            chosen = features_RF if rows_M is None else features_RF.index_select(0, rows_M)
            if isinstance(self.cls_score, ZeroShotClassifier):
                zero_shot: Tensor = self.cls_score(chosen, columns_S=columns_S)
                return zero_shot
            linear = cast("nn.Linear", self.cls_score)
            if columns_S is None:
                return F.linear(chosen, linear.weight, linear.bias)
            return F.linear(chosen, linear.weight[columns_S], linear.bias[columns_S])

        return classify

    def probabilities(self, features_RF: Tensor, classifier_DK: Tensor | None = None) -> Tensor:
        """Scores [R, K], 0 to 1; ``classifier_DK`` replaces the built-in columns for this call."""
        if isinstance(self.cls_score, ZeroShotClassifier):
            logits_RK = self.cls_score(features_RF, classifier_DK)
        else:
            logits_RK = self.cls_score(features_RF)
        scores: Tensor = logits_RK.sigmoid() if self.options.sigmoid else logits_RK.softmax(dim=-1)
        return scores

    def box_losses(
        self,
        features_RF: Tensor,
        deltas_R4: Tensor,
        proposals: Sequence[Instances],
        *,
        num_objects: int | None = None,
    ) -> dict[str, Tensor]:
        """Losses of regions with ground truth.

        Args:
            features_RF: of all images, in order.
            deltas_R4: from :meth:`regress`.
            proposals: per image ``proposal_boxes``, ``gt_classes`` and, where the image has objects,
                ``gt_boxes``.
            num_objects: annotated objects of the batch; bounds the distinct labels without asking
                the device.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        labels_R = torch.cat([found.gt_classes for found in proposals])
        boxes_R4 = Boxes.cat([found.proposal_boxes for found in proposals]).tensor
        # detectron2 leaves out gt_boxes of images without objects; their regions are background
        targets_R4 = Boxes.cat(
            [f.gt_boxes if f.has("gt_boxes") else f.proposal_boxes for f in proposals]
        ).tensor
        return {
            "loss_cls": self.classification_loss(
                self.classify_with(features_RF),
                labels_R,
                freq_weight_C=self.freq_weight,
                max_present=None if num_objects is None else num_objects + 1,
            ),
            "loss_box_reg": self.regression_loss(
                deltas_R4, boxes_R4, targets_R4, labels_R, self.num_classes
            ),
        }

    def image_label_loss(
        self, features_RF: Tensor, proposals: Sequence[Instances], supervision: Supervision
    ) -> Tensor:
        """Loss of regions whose image has labels but no boxes, times its weight.

        Args:
            features_RF: of all images, in order.
            proposals: per image ``proposal_boxes``, clipped, sorted by falling score.
            supervision: the labels.
        """
        batch = ImageLabelBatch(
            boxes_R4=Boxes.cat([found.proposal_boxes for found in proposals]).tensor,
            num_boxes=[len(found) for found in proposals],
            labels=supervision.labels,
            image_sizes=[found.image_size for found in proposals],
            num_classes=self.num_classes,
        )
        proposal_logits = self.prop_score(features_RF) if self.prop_score is not None else None
        result = self.weak_loss(batch, self.classify_with(features_RF), proposal_logits)
        self._log_statistics(batch, result)
        weighted: Tensor = result.loss * self.options.image_loss_weight
        return weighted

    def _log_statistics(self, batch: ImageLabelBatch, result: ImageLabelResult) -> None:
        storage = get_event_storage()
        if storage.iter % STATISTICS_PERIOD == 0:
            for name, value in image_label_statistics(batch, result).items():
                storage.put_scalar(name, float(value))


def _two_layers(input_dim: int, output_dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear with the published initialisation."""
    first, second = nn.Linear(input_dim, input_dim), nn.Linear(input_dim, output_dim)
    weight_init.c2_xavier_fill(first)
    nn.init.normal_(second.weight, std=0.001)
    nn.init.zeros_(second.bias)
    return nn.Sequential(first, nn.ReLU(inplace=True), second)
