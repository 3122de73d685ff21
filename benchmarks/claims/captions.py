"""Captions for the demo's pictures, and the demo's box files with words that captions use.

A class is one noun here ("striped disc" becomes "stripeddisc"), as RegionCLIP's concepts are nouns.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ext_common.data.json_files import read_json, write_json_atomic

PROMPT = "a photo of a {}."
_CAPTIONS = ("a photo of {}.", "a picture of {}.")
# parsers of English take "redring" for a verb
_WORDS = {"ring": "hoop"}

Record = dict[str, Any]


def noun(name: str) -> str:
    """A class name of the demo as one word."""
    return "".join(_WORDS.get(word, word) for word in name.split())


def caption(nouns: Sequence[str], rng: random.Random) -> str:
    """A sentence with every different noun once, in any order."""
    named = [f"a {word}" for word in sorted(set(nouns))]
    rng.shuffle(named)
    text = named[-1] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return rng.choice(_CAPTIONS).format(text)


def contents(annotations: Path) -> list[tuple[str, list[str]]]:
    """File name and nouns of every picture of one of the demo's files.

    Pictures with boxes have those of their objects, label pictures the one of their label.
    """
    file = read_json(annotations)
    names = {entry["id"]: noun(entry["name"]) for entry in file["categories"]}
    found: dict[Any, list[str]] = {
        image["id"]: [names[key] for key in image.get("pos_category_ids", ())]
        for image in file["images"]
    }
    for entry in file["annotations"]:
        found[entry["image_id"]].append(names[entry["category_id"]])
    return [(image["file_name"], found[image["id"]]) for image in file["images"]]


def write_captions(sources: Mapping[Path, str], output: Path, seed: int = 0) -> int:
    """A captions file in COCO's layout: two captions for each picture.

    Args:
        sources: annotation files of the demo, and the folder of their pictures below the folder
            that file names are written for.
        output: written whole.
        seed: of orders and wordings.

    Returns:
        Pictures that have captions; those without objects have none.
    """
    rng = random.Random(seed)
    images: list[Record] = []
    captions: list[Record] = []
    for path, folder in sources.items():
        for name, nouns in contents(path):
            if not nouns:
                continue
            images.append({"id": len(images), "file_name": f"{folder}/{name}"})
            for _ in range(2):
                text = caption(nouns, rng)
                captions.append(
                    {"id": len(captions), "image_id": images[-1]["id"], "caption": text}
                )
    write_json_atomic(output, {"images": images, "annotations": captions})
    return len(images)


def write_base_classes(source: Path, output: Path, names: Sequence[str]) -> None:
    """A box file of the demo with some of its classes only; pictures stay.

    Args:
        source: LVIS layout.
        output: written whole.
        names: of the classes to keep, as the demo has them.
    """
    file = read_json(source)
    file["categories"] = [entry for entry in file["categories"] if entry["name"] in names]
    kept = {entry["id"] for entry in file["categories"]}
    file["annotations"] = [one for one in file["annotations"] if one["category_id"] in kept]
    for image in file["images"]:
        image["neg_category_ids"] = [key for key in image["neg_category_ids"] if key in kept]
    write_json_atomic(output, file)
