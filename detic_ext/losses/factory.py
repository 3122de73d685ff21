"""Image-label losses by the names of MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from detic_ext.losses.first_box import FirstLoss
from detic_ext.losses.image_box import ImageBoxLoss
from detic_ext.losses.image_label_loss import BoxSelectedLoss, ImageLabelLoss
from detic_ext.losses.max_score import MaxScoreLoss
from detic_ext.losses.max_size import MaxSizeLoss
from detic_ext.losses.min_loss import MinLoss
from detic_ext.losses.wsddn import WsddnLoss
from ext_common.errors import ConfigError

IMAGE_LABEL_LOSSES: Mapping[str, type[ImageLabelLoss]] = MappingProxyType(
    {
        "max_size": MaxSizeLoss,
        "max_score": MaxScoreLoss,
        "min_loss": MinLoss,
        "first": FirstLoss,
        "image": ImageBoxLoss,
        "wsddn": WsddnLoss,
        "wsod": WsddnLoss,
    }
)


def image_label_loss_class(name: str) -> type[ImageLabelLoss]:
    """The class of a name; its attributes say what it needs, for checks before anything is built.

    Raises:
        ConfigError: an unknown name; the choices are listed.
    """
    if name not in IMAGE_LABEL_LOSSES:
        raise ConfigError(
            f"unknown image-label loss {name!r}",
            where="MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS",
            fix=f"one of {', '.join(IMAGE_LABEL_LOSSES)}",
        )
    return IMAGE_LABEL_LOSSES[name]


def build_image_label_loss(
    name: str, *, softmax: bool = False, ignore_last: bool = True
) -> ImageLabelLoss:
    """The loss of a name.

    Args:
        name: a key of :data:`IMAGE_LABEL_LOSSES`.
        softmax: SOFTMAX_WEAK_LOSS, for losses that choose the region by its box.
        ignore_last: of ``max_size`` alone, see :class:`~detic_ext.losses.max_size.MaxSizeLoss`.

    Raises:
        ConfigError: an unknown name, or softmax with another kind of loss.
    """
    loss_class = image_label_loss_class(name)
    if softmax and not issubclass(loss_class, BoxSelectedLoss):
        allowed = [n for n, c in IMAGE_LABEL_LOSSES.items() if issubclass(c, BoxSelectedLoss)]
        raise ConfigError(
            f"image-label loss {name!r} has no softmax form",
            where="MODEL.ROI_BOX_HEAD.SOFTMAX_WEAK_LOSS",
            fix=f"turn it off, or choose one of {', '.join(allowed)}",
        )
    options = {"softmax": True} if softmax else {}
    if issubclass(loss_class, MaxSizeLoss):
        options["ignore_last"] = ignore_last
    return loss_class(**options)
