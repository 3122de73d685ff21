"""Class scores, box deltas and losses of one cascade stage (specification sections 2 to 4).

Shapes: R regions of a batch, F their features, C classes, K = C + 1 columns (background last),
M chosen regions, S sampled columns, N captions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.box_regression import BoxRegressionLoss
from detic_ext.losses.caption import CaptionLoss
from detic_ext.losses.classify import Classify
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.image_label_loss import ImageLabelResult
from detic_ext.losses.statistics import image_label_statistics
from detic_ext.modeling.predictor_options import PredictorOptions
from detic_ext.modeling.supervision import CaptionFeatures, Supervision
from ext_common.errors import ConfigError
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier

# host scalars cost a synchronisation, so statistics are taken as often as writers print
STATISTICS_PERIOD = 20


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
        options: see :class:`~detic_ext.modeling.predictor_options.PredictorOptions`.
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
            count_background=self.options.count_background,
        )
        weights = cast("tuple[float, float, float, float]", tuple(box2box_transform.weights))
        self.regression_loss = BoxRegressionLoss(
            weights=weights, kind=self.options.box_loss, beta=self.options.box_loss_beta
        )
        self.weak_loss = build_image_label_loss(
            self.options.image_label_loss,
            softmax=self.options.softmax_weak_loss,
            ignore_last=self.options.ignore_last,
        )
        self.caption_loss = CaptionLoss(negative_weight=self.options.negative_caption_weight)
        self._has_frequencies = False

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Frequencies of the configured data stay: a checkpoint's describe the data it was made of."""
        name = f"{prefix}freq_weight"
        own_C = self.freq_weight
        if name in state_dict and own_C is not None and bool((own_C > 0).any()):
            state_dict = {**state_dict, name: own_C}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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

    def classify_with(self, features_RF: Tensor, subset: ClassSubset | None = None) -> Classify:
        """Logits of these regions, computed for the rows and columns that a loss asks for.

        With ``subset`` the columns are its classes and the background.
        """
        own_K = None if subset is None else subset.columns(features_RF.device)

        def classify(rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
            chosen = features_RF if rows_M is None else features_RF.index_select(0, rows_M)
            if own_K is not None:
                columns_S = own_K if columns_S is None else own_K[columns_S]
            if isinstance(self.cls_score, ZeroShotClassifier):
                zero_shot: Tensor = self.cls_score(chosen, columns_S=columns_S)
                return zero_shot
            linear = cast("nn.Linear", self.cls_score)
            if columns_S is None:
                return F.linear(chosen, linear.weight, linear.bias)
            return F.linear(chosen, linear.weight[columns_S], linear.bias[columns_S])

        return classify

    def compare_captions(self, features_MF: Tensor, captions: CaptionFeatures) -> Tensor:
        """Logits [M, N] of regions and captions, scaled as those of classes."""
        classifier = self.cls_score
        if not isinstance(classifier, ZeroShotClassifier):
            raise ConfigError(
                "captions are compared with text embeddings, this classifier has none",
                fix="set MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS True",
            )
        columns_DN = classifier.prepare(captions.features_ND)
        return classifier.score(classifier.embed(features_MF), columns_DN)

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
        subset: ClassSubset | None = None,
    ) -> dict[str, Tensor]:
        """Losses of regions with ground truth.

        Args:
            features_RF: of all images, in order.
            deltas_R4: from :meth:`regress`.
            proposals: per image ``proposal_boxes``, ``gt_classes`` and, where the image has objects,
                ``gt_boxes``.
            num_objects: annotated objects of the batch; bounds the distinct labels without asking
                the device.
            subset: the classes of this step; None = all.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.

        Raises:
            ConfigError: a loss needs class frequencies, and nobody has given any.
        """
        self._require_frequencies()
        labels_R = torch.cat([found.gt_classes for found in proposals])
        boxes_R4 = Boxes.cat([found.proposal_boxes for found in proposals]).tensor
        # detectron2 leaves out gt_boxes of images without objects; their regions are background
        targets_R4 = Boxes.cat(
            [f.gt_boxes if f.has("gt_boxes") else f.proposal_boxes for f in proposals]
        ).tensor
        local_R, weight_C = labels_R, self.freq_weight
        if subset is not None:
            local_R = subset.map_labels(labels_R)
            if weight_C is not None:
                weight_C = weight_C[subset.columns(weight_C.device)[:-1]]
        return {
            "loss_cls": self.classification_loss(
                self.classify_with(features_RF, subset),
                local_R,
                freq_weight_C=weight_C,
                max_present=None if num_objects is None else num_objects + 1,
            ),
            "loss_box_reg": self.regression_loss(
                deltas_R4, boxes_R4, targets_R4, labels_R, self.num_classes
            ),
        }

    def _require_frequencies(self) -> None:
        """Frequencies come from a file, the training data or the checkpoint; asked once."""
        if self._has_frequencies or not self.options.needs_frequencies:
            return
        if self.freq_weight is None or not bool((self.freq_weight > 0).any()):
            raise ConfigError(
                "the losses need class frequencies; there is no such file for these classes, the "
                "training data say nothing of them, and neither does MODEL.WEIGHTS",
                where="MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH",
                fix="give the file, or turn off USE_FED_LOSS and IGNORE_ZERO_CATS",
            )
        self._has_frequencies = True

    def image_label_loss(
        self, features_RF: Tensor, proposals: Sequence[Instances], supervision: Supervision
    ) -> Tensor:
        """Loss of regions whose image has labels or captions but no boxes, times its weight.

        Args:
            features_RF: of all images, in order.
            proposals: per image ``proposal_boxes``, clipped, sorted by falling score; with
                captions the last one is the box of the whole image.
            supervision: labels, captions and the classes of this step.
        """
        subset = supervision.subset
        labels: Sequence[Sequence[int]] = supervision.labels
        batch = ImageLabelBatch(
            boxes_R4=Boxes.cat([found.proposal_boxes for found in proposals]).tensor,
            num_boxes=[len(found) for found in proposals],
            labels=labels if subset is None else subset.map_label_lists(labels),
            image_sizes=[found.image_size for found in proposals],
            num_classes=self.num_classes if subset is None else subset.num_classes,
        )
        total = features_RF.new_zeros(())
        statistics: dict[str, Tensor] = {}
        loss_caption: Tensor | None = None
        if supervision.has_captions:
            loss_caption = self._caption_loss(features_RF, batch, supervision.captions)
            total = total + self.options.caption_weight * loss_caption
            statistics = {"stats_l_caption": loss_caption.detach()}
        if supervision.has_labels:
            result = self._label_loss(features_RF, batch, subset)
            total = total + result.loss
            statistics = image_label_statistics(batch, result, loss_caption)
        _log(statistics)
        return total * self.options.image_loss_weight

    def _label_loss(
        self, features_RF: Tensor, batch: ImageLabelBatch, subset: ClassSubset | None
    ) -> ImageLabelResult:
        proposal_logits: Tensor | None = None
        if self.prop_score is not None:
            proposal_logits = self.prop_score(features_RF)
            if subset is not None:
                proposal_logits = proposal_logits[:, subset.columns(features_RF.device)]
        result: ImageLabelResult = self.weak_loss(
            batch, self.classify_with(features_RF, subset), proposal_logits
        )
        return result

    def _caption_loss(
        self, features_RF: Tensor, batch: ImageLabelBatch, captions: CaptionFeatures | None
    ) -> Tensor:
        if captions is None:
            raise ConfigError(
                "a batch of captions, and the model does not read them",
                fix="set MODEL.WITH_CAPTION True",
            )
        rows_M = self.caption_loss.select(batch)
        logits_MN = self.compare_captions(features_RF.index_select(0, rows_M), captions)
        loss: Tensor = self.caption_loss(logits_MN, batch, first_own_column=captions.first_own_row)
        return loss


def _log(statistics: dict[str, Tensor]) -> None:
    storage = get_event_storage()
    if storage.iter % STATISTICS_PERIOD == 0:
        for name, value in statistics.items():
            storage.put_scalar(name, float(value))


def _two_layers(input_dim: int, output_dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear with the published initialisation."""
    first, second = nn.Linear(input_dim, input_dim), nn.Linear(input_dim, output_dim)
    weight_init.c2_xavier_fill(first)
    nn.init.normal_(second.weight, std=0.001)
    nn.init.zeros_(second.bias)
    return nn.Sequential(first, nn.ReLU(inplace=True), second)
