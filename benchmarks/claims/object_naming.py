"""How many objects a pretraining names correctly by their nearest labelled neighbours, without training.

    python -m benchmarks.claims.object_naming --config-file configs/claims/SoCo_pretrain.yaml \\
        --weights model_final.pth --labelled oracle_train.json --test val.json --images FOLDER --output named.json

Every ground-truth box is embedded by the online network. A box of the test scenes gets the class for which
its five most similar boxes of the labelled scenes vote, weighted by their similarities. Without
``--weights`` the network is untrained.

Shapes: R labelled boxes, T tested boxes, C width of an embedding.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.data.json_files import read_json, write_json_atomic
from ext_common.images import read_image
from ext_common.launch import usable_device
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from soco_ext.data.view_options import ViewOptions
from soco_ext.evaluation.neighbours import Picture, embed_pictures

NEIGHBOURS = 5
NAMED = "objects named"


def percent_named(
    known_RC: Tensor,
    classes_R: Tensor,
    asked_TC: Tensor,
    classes_T: Tensor,
    count: int = NEIGHBOURS,
) -> float:
    """Percent of the asked whose class wins the vote of their neighbours.

    Args:
        known_RC: embeddings of length 1 whose classes are known.
        classes_R: int64, from 0.
        asked_TC: embeddings of length 1.
        classes_T: their true classes.
        count: neighbours that vote; all where there are fewer.
    """
    similar_TN, places_TN = (asked_TC @ known_RC.t()).topk(min(count, len(known_RC)))
    votes_TK = similar_TN.new_zeros(len(asked_TC), int(classes_R.max()) + 1)
    # cosines may be negative: a vote counts from 0 for the opposite to 2 for the same
    votes_TK.scatter_add_(1, classes_R[places_TN], 1 + similar_TN)
    return 100.0 * float((votes_TK.argmax(dim=1) == classes_T).double().mean())


def objects(annotations: Path, images: Path) -> tuple[list[Picture], Tensor]:
    """Pictures that have objects, with their boxes, and the class of every box, from 0."""
    file = read_json(annotations)
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in file["annotations"]:
        found[entry["image_id"]].append(entry)
    pictures: list[Picture] = []
    classes: list[int] = []
    for image in file["images"]:
        entries = found.get(image["id"])
        if not entries:
            continue
        boxes_K4 = np.array([entry["bbox"] for entry in entries], np.float32)
        boxes_K4[:, 2:] += boxes_K4[:, :2] - 1  # the last pixel is inside
        pictures.append((read_image(images / image["file_name"], format="RGB"), boxes_K4))
        classes += [entry["category_id"] - 1 for entry in entries]
    return pictures, torch.tensor(classes)


def build(cfg: CfgNode, weights: str, seed: int) -> Any:
    """The pretraining's model; untrained without weights."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    if weights:
        load_model_weights(model, Path(weights))
    return model


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="YAML", help="of the pretraining")
    parser.add_argument("--weights", default="", metavar="FILE")
    parser.add_argument("--labelled", type=Path, required=True, metavar="JSON")
    parser.add_argument("--test", type=Path, required=True, metavar="JSON")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="of both files")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    parser.add_argument("--seed", type=int, default=0, help="of an untrained network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0."""
    args = build_parser().parse_args(words)
    register_all()
    cfg = load_config(args.config_file, ["MODEL.DEVICE", usable_device(args.device), *args.opts])
    model, options = build(cfg, args.weights, args.seed), ViewOptions.from_config(cfg)
    known, classes_R = objects(args.labelled, args.images)
    asked, classes_T = objects(args.test, args.images)
    known_RC, _ = embed_pictures(model, known, options)
    asked_TC, _ = embed_pictures(model, asked, options)
    percent = percent_named(known_RC, classes_R, asked_TC, classes_T)
    write_json_atomic(
        args.output, {NAMED: percent, "labelled": len(known_RC), "test": len(asked_TC)}
    )
    print(f"{percent:.1f} % of {len(asked_TC)} objects named by {len(known_RC)} others")
    return 0


if __name__ == "__main__":
    sys.exit(main())
