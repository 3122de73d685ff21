"""Prompt templates, and how names are written into them (specification 1.2, 1.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ext_common.errors import VocabularyError

SCENE_TEMPLATES = ("a photo of {}.", "a picture of {}.", "there is {} in the scene.", "{}.")
"""For images that are described by tags; our own choice."""


def imagenet_templates() -> tuple[str, ...]:
    """The 81 templates of the published embeddings: the bare name, then OpenAI's 80 for ImageNet."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return ("{}.", *(template("{}") for template in OPENAI_IMAGENET_TEMPLATES))


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates themselves.

    Raises:
        VocabularyError: there are none, or one does not hold ``{}`` exactly once.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise VocabularyError(
                f"template {template!r} must hold {{}} once", fix="such as 'a photo of a {}.'"
            )
    if not templates:
        raise VocabularyError("no templates", fix="'{}.' is the bare name")
    return tuple(templates)
