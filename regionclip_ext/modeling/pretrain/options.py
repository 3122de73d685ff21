"""Settings of a pretraining step."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from regionclip_ext import pretrain_config  # noqa: F401 - registers the keys
from regionclip_ext.concepts.matching import TEACHER_TEMPERATURE


@dataclass(frozen=True)
class PretrainOptions:
    """What :class:`~regionclip_ext.modeling.pretrain.meta_arch.PretrainFastRCNN` computes.

    Args:
        threshold: least confidence of a pseudo label (``CONCEPT_THRES``).
        temperature: of the student's logits and of the image-text loss (``CLSS_TEMP``).
        teacher_temperature: of the pseudo labels (``TEACHER_TEMP``).
        sampled_regions: most regions of an image; None = all (``PRETRAIN_SAMPLE_REGIONS``).
        image_text: compare whole images with captions (``PRETRAIN_IMG_TXT_LEVEL``).
        gather: do so over all processes (``GATHER_GPUS``).
        joint_pass: regions and whole images go through the last stage together; the same losses.
        frozen_bf16: teacher and RPN run in bfloat16; the text encoder never does, nor do stages
            that are shared.
        share_frozen: frozen stages that are equal in student and teacher run once; the same losses.

    Raises:
        ConfigError: a temperature or a number of regions that is not positive.
    """

    threshold: float = 0.1
    temperature: float = 0.01
    teacher_temperature: float = TEACHER_TEMPERATURE
    sampled_regions: int | None = 100
    image_text: bool = True
    gather: bool = False
    joint_pass: bool = True
    frozen_bf16: bool = False
    share_frozen: bool = True

    def __post_init__(self) -> None:
        temperatures = {"CLSS_TEMP": self.temperature, "TEACHER_TEMP": self.teacher_temperature}
        for key, value in temperatures.items():
            if value <= 0:
                raise ConfigError(
                    f"temperature {value}", where=f"MODEL.CLIP.{key}", fix="such as 0.01"
                )
        if self.sampled_regions is not None and self.sampled_regions < 1:
            raise ConfigError(
                f"{self.sampled_regions} regions per image",
                where="MODEL.CLIP.PRETRAIN_SAMPLE_REGIONS",
                fix="such as 100",
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PretrainOptions:
        """Translate config keys."""
        clip = cfg.MODEL.CLIP
        return cls(
            threshold=0.0 if clip.CONCEPT_THRES is None else float(clip.CONCEPT_THRES),
            temperature=float(clip.CLSS_TEMP),
            teacher_temperature=float(clip.TEACHER_TEMP),
            sampled_regions=clip.PRETRAIN_SAMPLE_REGIONS,
            image_text=clip.PRETRAIN_IMG_TXT_LEVEL,
            gather=clip.GATHER_GPUS,
            joint_pass=clip.PRETRAIN_JOINT_PASS,
            frozen_bf16=clip.PRETRAIN_FROZEN_BF16,
            share_frozen=clip.PRETRAIN_SHARE_FROZEN,
        )
