"""A picture that shows objects and those of other images that a pretraining finds most like them.

    python tools/prepare_data.py soco-neighbours --config-file configs/soco/SoCo_FPN_100ep.yaml \\
        --weights output/SoCo/FPN_100ep/model_final.pth --images photos --proposals photos.proposals \\
        --output neighbours.jpg

Each row begins with an object, drawn at random, and goes on with its nearest neighbours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ext_common.atomic_file import replacing
from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.drawing import contact_sheet
from ext_common.errors import DatasetError
from ext_common.images import printable, read_image
from ext_common.launch import usable_device
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from soco_ext.data.view_options import ViewOptions
from soco_ext.evaluation.neighbours import embed_pictures, nearest_of_others
from soco_ext.proposals.proposal_file import open_proposals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the pretraining")
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR")
    parser.add_argument("--proposals", required=True, type=Path, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="jpg or png")
    parser.add_argument("--most", type=int, default=200, metavar="N", help="images to look at")
    parser.add_argument("--rows", type=int, default=6, metavar="N", help="objects to ask for")
    parser.add_argument("--count", type=int, default=5, metavar="N", help="neighbours of each")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of objects")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    register_all()
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    load_model_weights(model, args.weights)
    proposals = open_proposals(args.proposals)
    generator = np.random.default_rng(args.seed)
    places = [int(p) for p in generator.permutation(len(proposals)) if len(proposals.boxes(int(p)))]
    places = places[: args.most]
    if len(places) < 2:
        raise DatasetError("fewer than two images with boxes", where=printable(args.proposals))
    names = [proposals.name(place) for place in places]
    boxes = [proposals.boxes(place) for place in places]
    pictures = (
        (read_image(args.images / name, format="RGB"), found)
        for name, found in zip(names, boxes, strict=True)
    )
    vectors_RC, owners_R = embed_pictures(model, pictures, ViewOptions.from_config(cfg))
    all_boxes_R4 = np.concatenate(boxes)
    cells, captions = [], []
    queries = generator.choice(len(owners_R), min(args.rows, len(owners_R)), replace=False)
    count = min(args.count, len(places) - 1)
    for query in queries.tolist():
        for box, similarity in [
            (query, 1.0),
            *nearest_of_others(vectors_RC, owners_R, query, count),
        ]:
            name = names[owners_R[box]]
            cells.append(_cut_out(args.images / name, all_boxes_R4[box]))
            captions.append(f"{similarity:.2f} {name}" if box != query else name)
    sheet = contact_sheet(cells, captions, columns=count + 1, cell=180)
    with replacing(args.output) as temporary:
        Image.fromarray(sheet).save(temporary)
    print(f"wrote {printable(args.output)}: {len(queries)} objects of {len(owners_R):,}")
    return 0


def _cut_out(path: Path, box_4: NDArray[np.float32]) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = (int(value) for value in box_4)
    return read_image(path, format="RGB")[y1 : y2 + 1, x1 : x2 + 1].copy()
