"""BYOL's colour pipeline on Pillow images (specification 2.7), and the step to a tensor.

Legend: H, W rows and columns of a view.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as F

from soco_ext.data.draws import Draws
from soco_ext.data.view_spec import ColourSpec

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""RGB, of pixels in 0..1."""
PIXEL_STD = (0.229, 0.224, 0.225)


def change_colours(image: Image.Image, spec: ColourSpec, draws: Draws) -> Image.Image:
    """Apply a pipeline to an RGB image; each step happens with its chance."""
    if _happens(spec.jitter, draws):
        image = _jittered(image, spec.amounts, draws)
    if _happens(spec.grey, draws):
        image = image.convert("L").convert("RGB")
    if _happens(spec.blur, draws):
        image = image.filter(ImageFilter.GaussianBlur(draws.uniform(*spec.blur_sigma)))
    if _happens(spec.solarise, draws):
        image = ImageOps.solarize(image, spec.solarise_from)
    return image


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """float32 [3, H, W], RGB, normalised by :data:`PIXEL_MEAN` and :data:`PIXEL_STD`."""
    pixels_HWC = np.asarray(image)
    result_CHW = np.empty((3, *pixels_HWC.shape[:2]), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(PIXEL_MEAN, PIXEL_STD, strict=True)):
        # one factor and one summand: a pass over bytes and a pass in place
        plane_HW = result_CHW[channel]
        np.multiply(pixels_HWC[:, :, channel], np.float32(1 / (255 * std)), out=plane_HW)
        plane_HW -= np.float32(mean / std)
    return result_CHW


def to_pixels(view_CHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: the reverse of :func:`to_array`, for pictures."""
    unit_HWC = view_CHW.transpose(1, 2, 0) * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    return np.clip(np.round(unit_HWC * 255), 0, 255).astype(np.uint8)


def _happens(chance: float, draws: Draws) -> bool:
    return chance > 0 and draws.uniform(0.0, 1.0) < chance


def _jittered(
    image: Image.Image, amounts: tuple[float, float, float, float], draws: Draws
) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter."""
    brightness, contrast, saturation = (
        draws.uniform(max(0.0, 1 - amount), 1 + amount) for amount in amounts[:3]
    )
    hue = draws.uniform(-amounts[3], amounts[3])
    for step in draws.choose(4, 4).tolist():
        if step == 0:
            image = F.adjust_brightness(image, brightness)
        elif step == 1:
            image = F.adjust_contrast(image, contrast)
        elif step == 2:
            image = F.adjust_saturation(image, saturation)
        else:
            image = F.adjust_hue(image, hue)
    return image
