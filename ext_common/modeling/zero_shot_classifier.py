"""Classification by text embeddings: cosine similarity with one column per class.

Shapes: R regions, F input features, D embedding width, C classes, K columns (C, then background
where there is one), S sampled columns. Source: Detic specification
section 2 (also the base of RegionCLIP's and the frozen detectors' open-vocabulary heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import VocabularyError
from ext_common.modeling.full_precision import full_precision

_EPS = 1e-12
_RANDOM_STD = 0.01  # spec section 2: ZEROSHOT_WEIGHT_PATH "rand"


def prepare_classifier(
    emb_CD: Tensor, *, normalize: bool = True, background: bool = True
) -> Tensor:
    """Class embeddings as classifier columns.

    Args:
        emb_CD: one row per class, any floating type; rows need not be normalised.
        normalize: divide every column by its L2 norm (NORM_WEIGHT), in float32 or wider.
        background: append a zero column, whose logit is 0 (or the bias) for every region.

    Returns:
        ``[D, C + 1]`` (``[D, C]`` without background), float32 or wider, differentiable in
        ``emb_CD``. Memory is laid out class by class, so that taking a few columns reads a few
        contiguous rows.

    Raises:
        VocabularyError: not a matrix, or no classes.
    """
    if emb_CD.dim() != 2 or 0 in emb_CD.shape:
        raise VocabularyError(
            f"class embeddings have shape {tuple(emb_CD.shape)}",
            fix="give a matrix with one row per class",
        )
    emb_CD = emb_CD.to(torch.promote_types(emb_CD.dtype, torch.float32))
    if normalize:
        emb_CD = F.normalize(emb_CD, dim=1, eps=_EPS)
    if background:
        emb_CD = torch.cat([emb_CD, emb_CD.new_zeros(1, emb_CD.shape[1])])
    return emb_CD.t()


class ZeroShotClassifier(nn.Module):
    """Linear projection, then similarity with fixed (or trained) class columns.

    Keys in a state dict: ``linear.weight``, ``linear.bias``, ``zs_weight`` and, with a bias,
    ``cls_bias``, as in published Detic models.

    Args:
        input_dim: width F of the region features.
        weight_dim: width D of the class embeddings.
        weight_DK: columns from :func:`prepare_classifier`, kept as a buffer (not copied where
            they are laid out class by class already). None: columns are
            drawn from N(0, 0.01), prepared, and trained as a parameter; give ``num_classes``.
        num_classes: C, only for trained columns.
        normalize: scale projected features to length ``temperature`` (NORM_WEIGHT).
        temperature: NORM_TEMP; unused without ``normalize``.
        bias: start value of one trained scalar added to every logit (USE_BIAS); it exists only
            if negative.
        on_class_mismatch: what loading a ``zs_weight`` with another number of columns does:
            ``error``; ``keep`` the columns this module has now (the configured vocabulary);
            ``adopt`` the stored ones. A plain attribute that may be set before loading.

    Raises:
        VocabularyError: columns of another width than ``weight_dim``, or neither columns nor a
            number of classes.
    """

    zs_weight: Tensor

    def __init__(
        self,
        *,
        input_dim: int,
        weight_dim: int,
        weight_DK: Tensor | None = None,
        num_classes: int | None = None,
        normalize: bool = True,
        temperature: float = 50.0,
        bias: float = 0.0,
        on_class_mismatch: Literal["error", "keep", "adopt"] = "error",
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.temperature = temperature
        self.on_class_mismatch = on_class_mismatch
        self._sharers: tuple[ZeroShotClassifier, ...] = ()
        self.linear = nn.Linear(input_dim, weight_dim)
        if weight_DK is not None:
            self.register_buffer("zs_weight", _by_class(weight_DK, weight_dim))
        elif num_classes:
            random_CD = torch.randn(num_classes, weight_dim) * _RANDOM_STD
            self.zs_weight = nn.Parameter(prepare_classifier(random_CD, normalize=normalize))
        else:
            raise VocabularyError(
                "a zero-shot classifier needs its classes",
                fix="give weight_DK, or num_classes for columns that are trained",
            )
        self.cls_bias = nn.Parameter(torch.full((1,), float(bias))) if bias < 0 else None

    @property
    def num_columns(self) -> int:
        """K: the classes and the background."""
        return self.zs_weight.shape[1]

    def forward(
        self,
        x_RF: Tensor,
        classifier_DK: Tensor | None = None,
        columns_S: Tensor | None = None,
    ) -> Tensor:
        """Logits of regions.

        Args:
            x_RF: region features.
            classifier_DK: columns for this call (from :meth:`prepare`) instead of ``zs_weight``.
            columns_S: int64 column numbers; only these are computed, in this order.

        Returns:
            ``logits_RK`` (``logits_RS`` with ``columns_S``), float32 or wider.
        """
        return self.score(self.embed(x_RF), classifier_DK, columns_S)

    def embed(self, x_RF: Tensor) -> Tensor:
        """Projected features ``[R, D]``, scaled to ``temperature`` with ``normalize``.

        One embedding serves several :meth:`score` calls (classes, then captions).
        """
        y_RD = self.linear(x_RF)
        y_RD = y_RD.to(torch.promote_types(y_RD.dtype, torch.float32))
        return self.temperature * F.normalize(y_RD, dim=1, eps=_EPS) if self.normalize else y_RD

    def score(
        self,
        y_RD: Tensor,
        classifier_DK: Tensor | None = None,
        columns_S: Tensor | None = None,
    ) -> Tensor:
        """Logits of embedded regions; arguments and result as in :meth:`forward`."""
        weight_KD = (self.zs_weight if classifier_DK is None else classifier_DK).t()
        if columns_S is not None:
            weight_KD = weight_KD.index_select(0, columns_S)
        # Half precision would round logits near the temperature to steps of 1/4 (bf16).
        with full_precision(y_RD):
            logits_RK = y_RD @ weight_KD.to(y_RD.dtype).t()
        return logits_RK if self.cls_bias is None else logits_RK + self.cls_bias

    def prepare(self, emb_CD: Tensor, *, background: bool = False) -> Tensor:
        """Columns for one call from embeddings, normalised as this classifier's own."""
        return prepare_classifier(emb_CD, normalize=self.normalize, background=background)

    def set_classifier(self, weight_DK: Tensor) -> None:
        """Replace the vocabulary by prepared columns, here and in all that share this one.

        Trained columns become a fixed buffer. Type and device stay as they are.
        """
        new_DK = _by_class(weight_DK.detach().to(self.zs_weight), self.linear.out_features)
        for classifier in self._sharers or (self,):
            del classifier.zs_weight
            classifier.register_buffer("zs_weight", new_DK)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ZeroShotClassifier:
        """Move or convert; what is shared is moved once and stays shared."""
        before = self.zs_weight
        super()._apply(fn, recurse)
        for classifier in self._sharers:
            if classifier.zs_weight is before:
                classifier.zs_weight = self.zs_weight
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        name = f"{prefix}zs_weight"
        stored = state_dict.get(name)
        if stored is not None and stored.shape != self.zs_weight.shape:
            if self.on_class_mismatch == "keep":
                state_dict = {**state_dict, name: self.zs_weight}
            elif self.on_class_mismatch == "adopt":
                self.set_classifier(stored)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def share_classifier_weights(classifiers: Sequence[ZeroShotClassifier]) -> None:
    """Let the stages of a cascade hold one column matrix in memory (spec 12.21).

    Each keeps its own key in the state dict. The tensor stays shared through ``.to()``, loading,
    ``copy.deepcopy`` and :meth:`ZeroShotClassifier.set_classifier`.

    Raises:
        VocabularyError: columns that differ, or that are trained.
    """
    first = classifiers[0]
    for classifier in classifiers:
        if isinstance(classifier.zs_weight, nn.Parameter):
            raise VocabularyError("trained class columns cannot be shared between stages")
        if not _same_columns(classifier.zs_weight, first.zs_weight):
            raise VocabularyError("stages with different classes cannot share their columns")
    for classifier in classifiers:
        classifier.zs_weight = first.zs_weight
        classifier._sharers = tuple(classifiers)


def _same_columns(a_DK: Tensor, b_DK: Tensor) -> bool:
    """Equal values; on the meta device, where there are none, equal shapes."""
    if a_DK is b_DK:
        return True
    if a_DK.is_meta or b_DK.is_meta:
        return a_DK.is_meta and b_DK.is_meta and a_DK.shape == b_DK.shape
    return torch.equal(a_DK, b_DK)


def _by_class(weight_DK: Tensor, weight_dim: int) -> Tensor:
    """``weight_DK`` with each column contiguous in memory; no copy where it is so already."""
    if weight_DK.dim() != 2 or weight_DK.shape[0] != weight_dim:
        raise VocabularyError(
            f"classifier columns have shape {tuple(weight_DK.shape)}, "
            f"the detector projects to {weight_dim}",
            fix="use embeddings of that width (ZEROSHOT_WEIGHT_DIM), prepared as [D, C + 1]",
        )
    return weight_DK.t().contiguous().t()
