"""A picture of the views that a pretraining of SoCo would see, with their boxes.

    python tools/prepare_data.py soco-views --config-file configs/soco/SoCo_FPN_100ep.yaml \\
        --images photos --proposals photos.proposals --output views.jpg

Each row is a pair of views: the picture with its proposals (grey) and the crop (white), its first
view, and the view that this one is contrasted with. Boxes of one colour and number are the same
object; grey boxes of a view have no counterpart. Without --proposals boxes come from where
SOCO.PROPOSALS.SOURCE says, and are random where that is a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from ext_common.atomic_file import replacing
from ext_common.config import load_config
from ext_common.data.unlabelled_images import images_of_folder
from ext_common.drawing import contact_sheet
from ext_common.errors import ConfigError
from ext_common.images import printable, read_image
from ext_common.packages import register_all
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.proposal_lookup import ProposalLookup
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_options import ProposalOptions, ViewOptions
from soco_ext.evaluation.view_pictures import CELLS_OF_A_PAIR, ViewCell, view_cells


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the pretraining")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR")
    parser.add_argument("--proposals", type=Path, metavar="FILE", help="of soco-proposals")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="jpg or png")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="pictures; default: 4")
    parser.add_argument("--side", type=int, default=280, metavar="PX", help="cell; default: 280")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and views")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    for option in ("count", "side"):
        if getattr(args, option) < 1:
            raise ConfigError(f"{getattr(args, option)}", where=f"--{option}", fix="1 or more")
    register_all()
    cfg = load_config(args.config_file, args.opts)
    lookup = ProposalLookup(_proposals(cfg, args.proposals))
    images = images_of_folder(args.images)
    lookup.check(images.names)
    maker = ViewMaker(ViewOptions.from_config(cfg))
    places = np.random.default_rng(args.seed).permutation(len(images))[: args.count]
    cells: list[ViewCell] = []
    for place in places.tolist():
        name = images.names[place]
        image_HW3 = read_image(args.images / name, format="RGB", max_pixels=cfg.INPUT.MAX_PIXELS)
        draws = GeneratorDraws(np.random.default_rng((args.seed, place)))
        boxes_K4 = lookup(name, (image_HW3.shape[0], image_HW3.shape[1]), draws.generator)
        cells += view_cells(maker, image_HW3, boxes_K4, draws, name=name, side=args.side)
    sheet = contact_sheet(
        [cell.pixels_HW3 for cell in cells],
        [cell.caption for cell in cells],
        columns=CELLS_OF_A_PAIR,
        cell=args.side,
    )
    with replacing(args.output) as temporary:
        Image.fromarray(sheet).save(temporary)
    pairs = len(cells) // CELLS_OF_A_PAIR
    print(f"wrote {printable(args.output)}: {len(places)} pictures, {pairs} pairs of views")
    return 0


def _proposals(cfg: CfgNode, file: Path | None) -> ProposalOptions:
    """Where boxes come from: the file that is named here, else none from a file."""
    node = cfg.SOCO.PROPOSALS.clone()
    node.defrost()
    if file is not None:
        node.SOURCE, node.FILE = "file", str(file)
    elif node.SOURCE == "file":
        print("no --proposals: random boxes")
        node.SOURCE = "random"
    part = CfgNode({"SOCO": {"PROPOSALS": node}})
    return ProposalOptions.from_config(part)
