"""Names of tensors in CLIP's and RegionCLIP's files (specification 10).

Only names here; :mod:`regionclip_ext.checkpoint` reads files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ext_common.clip_text_encoder import REGIONCLIP_TEXT

TEXT = REGIONCLIP_TEXT
OFFLINE = {
    "backbone.": "offline_backbone.",
    "proposal_generator.": "offline_proposal_generator.",
}
_IMAGE = "visual."
_VIT = ("visual.transformer.", "visual.trunk.blocks.", "visual.class_embedding")
_TEXT_NAMES = (
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "positional_embedding",
    "text_projection",
)
# what CLIP files have besides encoders
_CONSTANTS = (
    "logit_scale",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
)


def is_clip(names: Iterable[str]) -> bool:
    """Whether these are the names of an OpenAI or open_clip file."""
    return any(name.startswith(_IMAGE) for name in names)


def has_vision_transformer(names: Iterable[str]) -> bool:
    """Whether the image encoder of these names is a ViT (OpenAI's, open_clip's or timm's)."""
    return any(name.startswith(_VIT) for name in names)


def clip_key_map(
    names: Iterable[str], *, encoders: Sequence[str] = ("backbone.",), text: bool = True
) -> dict[str, list[str]]:
    """Where each tensor of a CLIP file goes in a model.

    Args:
        names: of the file; open_clip's ``text.`` prefix is understood.
        encoders: prefixes of the model's image encoders (``backbone.``, ``teacher_backbone.``).
        text: the model has a text encoder.

    Returns:
        Names in the model for every name; empty for what no model holds: the logit scale, batch
        counters, the archive's sizes.
    """
    targets: dict[str, list[str]] = {}
    for name in names:
        targets[name] = []
        if name.endswith("num_batches_tracked"):
            continue
        if name.startswith(_IMAGE):
            targets[name] = [prefix + name.removeprefix(_IMAGE) for prefix in encoders]
        elif text and name.removeprefix("text.").startswith(_TEXT_NAMES):
            targets[name] = [TEXT + name.removeprefix("text.")]
    return targets


def foreign_names(names: Iterable[str]) -> list[str]:
    """Names in a CLIP file that are no CLIP's."""
    known = (_IMAGE, *_TEXT_NAMES, *_CONSTANTS)
    return [name for name in names if not name.removeprefix("text.").startswith(known)]


def offline_name(name: str) -> str | None:
    """Name of a detector's tensor in the offline branch; None where it has no place there."""
    for prefix, target in OFFLINE.items():
        if name.startswith(target):
            return name
        if name.startswith(prefix):
            return target + name.removeprefix(prefix)
    return None
