"""Which pixels a trunk was trained on: a frozen one cannot get used to others (spec 9.8)."""

from __future__ import annotations

from dataclasses import dataclass

import timm
from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import FINISH_CONFIG_REGISTRY

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PixelStatistics:
    """How pictures are given to a network, in 0..255.

    Args:
        order: of the channels, RGB or BGR.
        mean, std: per channel, in that order.
    """

    order: str
    mean: Triple
    std: Triple

    def problems(self, cfg: CfgNode) -> list[str]:
        """Keys whose values differ, with what they should be."""
        mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
        # RegionCLIP's detector divides pictures by 255 first
        scale = 255 if cfg.MODEL.META_ARCHITECTURE.startswith("CLIP") and max(mean) <= 1 else 1
        wanted = {
            "INPUT.FORMAT": (cfg.INPUT.FORMAT, self.order),
            "MODEL.PIXEL_MEAN": (mean, [value / scale for value in self.mean]),
            "MODEL.PIXEL_STD": (std, [value / scale for value in self.std]),
        }
        return [
            f"{key} {found} should be {right}"
            for key, (found, right) in wanted.items()
            if not _same(found, right)
        ]


_IMAGENET = PixelStatistics("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
DESCRIBED = {
    "torchvision": _IMAGENET,
    "msra": PixelStatistics("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "clip": PixelStatistics(
        "RGB", (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)
    ),
    "inception": PixelStatistics("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}
"""By value of ``MODEL.BACKBONE_FREEZE.PIXELS``."""


AUTO = "auto"


def timm_statistics(name: str) -> PixelStatistics | None:
    """What timm says about the weights of a model; None for a model that it has no weights for."""
    source = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if source is None or source.mean is None or source.std is None:
        return None
    mean, std = (
        [round(255 * value, 4) for value in values] for values in (source.mean, source.std)
    )
    return PixelStatistics("RGB", (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


@FINISH_CONFIG_REGISTRY.register()
def finish_pixels(cfg: CfgNode, training: bool) -> None:
    """With ``MODEL.BACKBONE_FREEZE.PIXELS auto``, take channel order, mean and deviation from timm.

    Args:
        cfg: changed in place.
        training: pixels are the same at test.

    Raises:
        ConfigError: a backbone of another kind, or one whose weights timm does not describe.
    """
    if cfg.MODEL.BACKBONE_FREEZE.PIXELS != AUTO:
        return
    statistics = timm_statistics(cfg.MODEL.TIMM.BASE_NAME) if _uses_timm(cfg) else None
    if statistics is None:
        raise ConfigError(
            "only weights that timm describes say which pixels they were trained on",
            where="MODEL.BACKBONE_FREEZE.PIXELS",
            fix=f"one of {', '.join(DESCRIBED)}",
        )
    cfg.INPUT.FORMAT = statistics.order
    cfg.MODEL.PIXEL_MEAN = list(statistics.mean)
    cfg.MODEL.PIXEL_STD = list(statistics.std)


def check_pixels(cfg: CfgNode) -> None:
    """The configuration gives a frozen trunk the pixels that it was trained on.

    Raises:
        ConfigError: other ones, or an unknown name.
    """
    name = cfg.MODEL.BACKBONE_FREEZE.PIXELS
    if name and name != AUTO:
        if name not in DESCRIBED:
            raise ConfigError(
                f"unknown pixels {name!r}",
                where="MODEL.BACKBONE_FREEZE.PIXELS",
                fix=f"one of {', '.join((*DESCRIBED, AUTO))}",
            )
        statistics: PixelStatistics | None = DESCRIBED[name]
        source = f"MODEL.BACKBONE_FREEZE.PIXELS {name}"
    elif _uses_timm(cfg):
        statistics = timm_statistics(cfg.MODEL.TIMM.BASE_NAME)
        source = f"timm's {cfg.MODEL.TIMM.BASE_NAME}"
    else:
        return
    problems = [] if statistics is None else statistics.problems(cfg)
    if name in ("torchvision", "msra") and not _uses_timm(cfg):
        in_1x1 = name == "msra"
        if bool(cfg.MODEL.RESNETS.STRIDE_IN_1X1) is not in_1x1:
            problems.append(f"MODEL.RESNETS.STRIDE_IN_1X1 should be {in_1x1}")
    if problems:
        raise ConfigError(
            f"the frozen trunk was trained on other pixels ({source}): {'; '.join(problems)}",
            fix="a frozen network cannot adapt: set these keys",
        )


def _uses_timm(cfg: CfgNode) -> bool:
    builders = (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PYRAMID.BOTTOM_UP, cfg.MODEL.ADAPTERS.BACKBONE)
    used = builders[0]
    if used == "build_adapted_backbone":
        used = builders[2]
    if used == "build_pyramid_backbone":
        used = builders[1]
        if used == "build_adapted_backbone":
            used = builders[2]
    return "timm" in used


def _same(found: object, right: object) -> bool:
    if isinstance(found, list) and isinstance(right, list):
        # files write means with three decimals
        return all(abs(a - b) < 2e-3 * abs(b) for a, b in zip(found, right, strict=True))
    return found == right
