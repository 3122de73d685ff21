"""Regions of the images of pretraining, so that training need not run the RPN every step.

    python tools/prepare_data.py proposals --config-file configs/regionclip/pretrain_coco_RN50.yaml \\
        --rpn-weights rpn_lvis_866.pth --output datasets/regions/coco

Images, resize, detector (OFFLINE_RPN_CONFIG) and numbers of proposals are those of the configuration.
A stopped run goes on where it was; a folder made with another detector or setting, or of other images, is
refused. Then train with MODEL.CLIP.CROP_REGION_TYPE FILE and
MODEL.CLIP.PROPOSAL_FILE naming the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ext_common.config import load_config
from ext_common.config_digest import config_digest
from ext_common.errors import ConfigError
from ext_common.file_digest import sha256_of
from ext_common.images import printable
from ext_common.packages import register_all
from regionclip_ext.checkpoint import load_offline_branch
from regionclip_ext.data.pair_sources import load_pair_records
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.modeling.pretrain.config_checks import check_rpn_pixels
from regionclip_ext.modeling.regions.offline import OfflineRPN, build_offline_rpn, offline_config
from regionclip_ext.proposals.compute import PART_SIZE, ProposalRun

from .files import progress_bar

# keys of the offline branch that are paths, or that neither backbone nor RPN reads
_WITHOUT_EFFECT = (
    "DATALOADER.*",
    "DATASETS.*",
    "INPUT_DIR",
    "INPUT.TRUST_FILES",
    "MODEL.*.CACHE_*",
    "MODEL.*ENCODER_WEIGHTS",
    "MODEL.*RPN_WEIGHTS",
    "MODEL.*_FILE",
    "MODEL.*_PATH",
    "MODEL.CLIP.OFFLINE_RPN_CONFIG",
    "MODEL.TEXT_ENCODER.*",
    "SOCO.*",
    "SOLVER.*",
    "TEST.*",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config-file", type=Path, required=True, metavar="FILE", help="pretraining"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for part files")
    parser.add_argument("--rpn-weights", metavar="FILE", help="default: MODEL.CLIP.BB_RPN_WEIGHTS")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at once")
    parser.add_argument(
        "--part-size", type=int, default=PART_SIZE, metavar="N", help="images a file"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="last")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    register_all()
    cfg = load_config(args.config_file, args.opts)
    weights = args.rpn_weights or cfg.MODEL.CLIP.BB_RPN_WEIGHTS
    if not weights:
        raise ConfigError(
            "no weights for the RPN", where="--rpn-weights", fix="name its checkpoint"
        )
    check_rpn_pixels(offline_config(cfg), cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG)
    records = load_pair_records(cfg)
    offline = build_offline_rpn(cfg, top_k=cfg.MODEL.CLIP.PRETRAIN_RPN_REGIONS)
    branch = _Branch(offline).to(cfg.MODEL.DEVICE)
    load_offline_branch(branch, weights)
    offline.freeze()
    made = ProposalRun(
        records,
        offline,
        ShortSideResize(cfg.AUG.TRAIN.IMAGE_SIZE[0], cfg.AUG.TRAIN.MAX_SIZE, cfg.AUG.INTERPOLATION),
        args.output,
        _header(cfg, Path(weights)),
        torch.device(cfg.MODEL.DEVICE),
        batch_size=args.batch_size,
        part_size=args.part_size,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        skip_bad=args.skip_bad,
    )
    with progress_bar("proposing", "image") as progress:
        count = made.run(lambda done: progress(done, len(records)))
    print(f"wrote {printable(args.output)}: {count} of {len(records)} images were new", flush=True)
    return 0


def _header(cfg: CfgNode, weights: Path) -> dict[str, Any]:
    """What decides about the proposals; names of files do not, their content does."""
    branch = offline_config(cfg, top_k=cfg.MODEL.CLIP.PRETRAIN_RPN_REGIONS)
    return {
        "weights_sha256": sha256_of(weights),
        "config_digest": config_digest(branch, _WITHOUT_EFFECT),
        "backbone": branch.MODEL.BACKBONE.NAME,
        "nms": branch.MODEL.RPN.NMS_THRESH,
        "top_k": branch.MODEL.RPN.POST_NMS_TOPK_TEST,
        "short": cfg.AUG.TRAIN.IMAGE_SIZE[0],
        "longest": cfg.AUG.TRAIN.MAX_SIZE,
        "interpolation": cfg.AUG.INTERPOLATION,
        "channels": cfg.INPUT.FORMAT,
    }


class _Branch(nn.Module):
    """The two frozen modules under the names that checkpoints are loaded by."""

    def __init__(self, offline: OfflineRPN) -> None:
        super().__init__()
        self.offline_backbone = offline.backbone
        self.offline_proposal_generator = offline.proposal_generator
