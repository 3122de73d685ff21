"""How class names are written into prompts (RegionCLIP specification 1.2)."""

from __future__ import annotations


def fill(template: str, name: str) -> str:
    """A prompt: the template with a name, without commas and with blanks for plus signs."""
    return template.replace("{}", name.replace(",", "").replace("+", " "))


def lvis_name(name: str) -> str:
    """An LVIS category's name as the published embeddings write it."""
    return name.replace("_", " ").replace("(", "").replace(")", "")
