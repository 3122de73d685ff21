"""Weights that do not come from ``MODEL.WEIGHTS``: CLIP's own files, and the offline branch's.

Both are merged into the model's full state before anything is loaded, so that no frozen batch norm
fills what is missing with 0 and 1: the mechanism behind reports of an AP near 0 (pitfall 11.1).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor, nn

from ext_common.errors import WeightsError
from ext_common.registries import MODEL_SETUP_REGISTRY
from ext_common.stored_weights import read_weights
from ext_common.weights_match import match_weights
from regionclip_ext.checkpoint_names import (
    OFFLINE,
    TEXT,
    clip_key_map,
    foreign_names,
    has_vision_transformer,
    is_clip,
    offline_name,
)
from regionclip_ext.modeling.roi_heads import CLIPRes5ROIHeads

logger = logging.getLogger(__name__)

STUDENT, TEACHER = "backbone.", "teacher_backbone."
_BELOW_FPN = "backbone.bottom_up."
_STUDENT_POOL = re.compile(r"backbone\.(bottom_up\.)?attnpool\.")


@MODEL_SETUP_REGISTRY.register()
def setup_regionclip(cfg: CfgNode, model: nn.Module) -> None:
    """Connect CLIP heads with their encoder, and load the weight files of ``MODEL.CLIP``."""
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, CLIPRes5ROIHeads):
        heads.attach(model.get_submodule("backbone"))
    clip = cfg.MODEL.get("CLIP")
    if clip is None or hasattr(model, "weight_files"):  # loaded by itself
        return
    files = WeightFiles(
        clip.ENCODER_WEIGHTS or "", clip.BB_RPN_WEIGHTS or "", clip.TEACHER_ENCODER_WEIGHTS or ""
    )
    files.load_into(model)


@dataclass(frozen=True)
class WeightFiles:
    """Files besides ``MODEL.WEIGHTS``.

    A detector loads them while it is built: detectron2's ``DefaultPredictor`` builds a model and loads
    ``MODEL.WEIGHTS``, no more.

    Args:
        encoder: of CLIP (``MODEL.CLIP.ENCODER_WEIGHTS``); empty = none.
        offline: of the offline branch (``MODEL.CLIP.BB_RPN_WEIGHTS``); empty = none.
        teacher: of a pretraining's teacher (``MODEL.CLIP.TEACHER_ENCODER_WEIGHTS``); empty = that
            of ``encoder``.
    """

    encoder: str = ""
    offline: str = ""
    teacher: str = ""

    def load_into(self, model: nn.Module) -> None:
        """Load all of them.

        Raises:
            WeightsError: see :func:`load_clip_encoders` and :func:`load_offline_branch`.
        """
        if self.encoder:
            load_clip_encoders(model, self.encoder, teacher=not self.teacher)
        if self.teacher:
            load_clip_encoders(model, self.teacher, student=False, text=False)
            model.teacher_fixed = True  # type: ignore[assignment]
        if self.offline and hasattr(model, "offline_backbone"):
            load_offline_branch(model, self.offline)


def load_clip_encoders(
    model: nn.Module,
    path: str | Path,
    *,
    student: bool = True,
    teacher: bool = True,
    text: bool = True,
) -> tuple[str, ...]:
    """Load a CLIP into the encoders that a model has; they must be covered completely.

    Args:
        model: detector or pretraining model.
        path: OpenAI's ``.pt`` archive, an open_clip file, or a RegionCLIP checkpoint. Half precision
            becomes float32.
        student, teacher, text: which encoders to fill, if the model has them.

    Returns:
        Names of the tensors that were loaded.

    Raises:
        WeightsError: the file cannot be read, or its model is another one.
    """
    own = model.state_dict(keep_vars=True)
    stored = read_weights(path).tensors
    wanted = [
        prefix
        for prefix, asked in ((STUDENT, student), (TEACHER, teacher), (TEXT, text))
        if asked and any(name.startswith(prefix) for name in own)
    ]
    translated = translate_clip(stored, wanted, own)
    return _load_part(model, translated, wanted, str(path))


def load_offline_branch(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Load backbone and RPN of a detector into the offline branch (``BB_RPN_WEIGHTS``).

    What a checkpoint says about the branch is ignored from then on.

    Args:
        model: with ``offline_backbone`` and ``offline_proposal_generator``.
        path: checkpoint of a detectron2 detector, or of RegionCLIP.

    Returns:
        Names of the tensors that were loaded.

    Raises:
        WeightsError: the file cannot be read, or belongs to another detector.
    """
    stored = read_weights(path).tensors
    # a RegionCLIP file has a backbone of its own beside the branch's
    prefixed = any(name.startswith(tuple(OFFLINE.values())) for name in stored)
    translated = {}
    for name, tensor in stored.items():
        target = offline_name(name)
        if target is not None and not (prefixed and target != name):
            translated[target] = tensor
    loaded = _load_part(model, translated, list(OFFLINE.values()), str(path))
    model.offline_fixed = True  # type: ignore[assignment]
    return loaded


def translate_clip(
    stored: Mapping[str, Tensor], prefixes: Sequence[str], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of a CLIP or RegionCLIP file under a model's names, in float32.

    Args:
        stored: the file's.
        prefixes: of the encoders that are wanted: ``backbone.``, ``teacher_backbone.``,
            ``lang_encoder.``.
        own: the model's tensors; tells an encoder below an FPN (``backbone.bottom_up.``).

    Raises:
        WeightsError: an image encoder is wanted, and the file's is a vision transformer.
    """
    pyramid = any(name.startswith("backbone.bottom_up.conv1.") for name in own)
    if not is_clip(stored):
        translated = {n: t for n, t in stored.items() if n.startswith(tuple(prefixes))}
        if pyramid and not any(n.startswith(_BELOW_FPN) for n in translated):
            translated = {
                _BELOW_FPN + n.removeprefix(STUDENT) if n.startswith(STUDENT) else n: t
                for n, t in translated.items()
            }
        if TEACHER in prefixes and not any(n.startswith(TEACHER) for n in translated):
            copies = {n: t for n, t in stored.items() if n.startswith(STUDENT)}
            translated |= {TEACHER + n.removeprefix(STUDENT): t for n, t in copies.items()}
    else:
        encoders = [prefix for prefix in prefixes if prefix != TEXT]
        if encoders and has_vision_transformer(stored):
            raise WeightsError(
                "the image encoder of this CLIP is a vision transformer, which is not supported",
                fix="a CLIP ResNet: RN50, RN101, RN50x4 or RN50x16. As a text encoder any CLIP "
                "will do: MODEL.TEXT_ENCODER",
            )
        if pyramid:
            encoders = [_BELOW_FPN if p == STUDENT else p for p in encoders]
        key_map = clip_key_map(stored, encoders=encoders, text=TEXT in prefixes)
        translated = {name: stored[source] for source, names in key_map.items() for name in names}
    if not any(name.startswith("backbone.attnpool.") for name in own):
        # an ordinary detector has none
        translated = {n: t for n, t in translated.items() if not _STUDENT_POOL.match(n)}
    return {name: tensor.float() for name, tensor in translated.items()}


def clip_weights(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of ``MODEL.WEIGHTS`` under a model's names (``TranslatesWeights``).

    Args:
        stored: the file's; all but CLIP's own files come back as they are.
        own: the model's tensors that may come from it: encoders without any are left out.
    """
    if not is_clip(stored):
        return stored
    wanted = [p for p in (STUDENT, TEACHER, TEXT) if any(name.startswith(p) for name in own)]
    foreign = {name: stored[name] for name in foreign_names(stored)}
    return translate_clip(stored, wanted, own) | foreign


def _load_part(
    model: nn.Module, translated: Mapping[str, Tensor], prefixes: Sequence[str], path: str
) -> tuple[str, ...]:
    """Load tensors that must cover all of the model below some prefixes (an FPN's own excepted)."""
    own = model.state_dict(keep_vars=True)
    part = {name: own[name] for name in own if name.startswith(tuple(prefixes))}
    if any(name.startswith("backbone.bottom_up.") for name in translated):
        part = {n: t for n, t in part.items() if not n.startswith("backbone.fpn_")}
    known = {name: tensor for name, tensor in translated.items() if _belongs(name, part)}
    report, pairs = match_weights(known, part, by_suffix=False)
    if not report.complete or not report.loaded:
        raise WeightsError(
            f"does not fit {', '.join(prefixes)}: {report.problems() or 'nothing in it has a place'}",
            where=path,
            fix="the file and MODEL.CLIP (encoder, OFFLINE_RPN_CONFIG) must be of one model",
        )
    state = model.state_dict()
    state.update({name: translated[source] for name, source in pairs.items()})
    model.load_state_dict(state)
    logger.info("%s: %d tensors loaded below %s", path, len(pairs), ", ".join(prefixes))
    return tuple(pairs)


def _belongs(name: str, part: Mapping[str, Tensor]) -> bool:
    """Anchors and pixel statistics are made from the configuration."""
    computed = "anchor_generator" in name or name.endswith(("pixel_mean", "pixel_std"))
    return name in part or not computed
