"""CLIP features of the regions of pictures.

    python tools/prepare_data.py region-features --config-file configs/regionclip/zeroshot_RN50.yaml \\
        --weights regionclip.pth --images my_pictures --output features --vocabulary "cat, dog"

One file per picture. With classes (--vocabulary, or MODEL.CLIP.TEXT_EMB_PATH) it has the detected
regions: boxes [N, 4] (XYXY pixels of the picture), classes [N], probs [N, classes + background] and
feats [N, D]; without, boxes and feats of all proposals. Files that are there are not made again;
region_features.json beside them says what they were made with, and a run with other weights, classes
or configuration stops, unless --overwrite has it make all pictures anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.images import printable
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from regionclip_ext.extraction.pictures import output_paths, picture_batches
from regionclip_ext.extraction.region_features import FORMATS, region_features
from regionclip_ext.extraction.settings import check_settings, settings_of, write_settings
from regionclip_ext.modeling.meta_arch import CLIPFastRCNN

from .files import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config-file", type=Path, required=True, metavar="FILE")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: INPUT_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--vocabulary", metavar="NAMES|FILE", help="classes of the regions")
    parser.add_argument("--format", choices=FORMATS, default=".pth", help="default: .pth")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at once")
    parser.add_argument("--overwrite", action="store_true", help="make all pictures anew")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="last")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    register_all()
    opts = list(args.opts)
    if args.vocabulary:
        opts += ["MODEL.VOCABULARY", args.vocabulary]
    cfg = load_config(args.config_file, opts)
    folder = args.images or Path(cfg.INPUT_DIR)
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {printable(folder)}", where="--images")
    paths = output_paths(folder, args.output, args.format)
    if not paths:
        raise ConfigError("no pictures", where=printable(folder), fix="name another --images")
    weights = args.weights or cfg.MODEL.WEIGHTS
    settings = settings_of(cfg, weights)
    made = [path for path in _paths_of_all_formats(folder, args.output) if path.is_file()]
    if not args.overwrite:
        check_settings(args.output, settings, filled=bool(made))
    left = [picture for picture, path in paths.items() if args.overwrite or not path.is_file()]
    if left:
        model = _load_model(cfg, weights)
        args.output.mkdir(parents=True, exist_ok=True)
        if args.overwrite:
            for path in made:  # first: a run that stops must not leave old files beside new ones
                path.unlink()
        write_settings(args.output, settings)
        _extract(model, cfg, {picture: paths[picture] for picture in left}, args.batch_size)
    print(
        f"wrote {printable(args.output)}: {len(left)} of {len(paths)} pictures were new", flush=True
    )
    return 0


def _paths_of_all_formats(folder: Path, output: Path) -> list[Path]:
    return [path for suffix in FORMATS for path in output_paths(folder, output, suffix).values()]


def _load_model(cfg: CfgNode, weights: str) -> CLIPFastRCNN:
    model = build_model(cfg).eval()
    if not isinstance(model, CLIPFastRCNN):
        raise ConfigError(
            f"{type(model).__name__} has no region features",
            where="MODEL.META_ARCHITECTURE",
            fix="CLIPFastRCNN: configs/regionclip/zeroshot_RN50.yaml",
        )
    if weights:
        load_model_weights(model, weights)
    return model


def _extract(model: CLIPFastRCNN, cfg: CfgNode, paths: dict[Path, Path], batch_size: int) -> None:
    """Write the features of every picture to its path."""
    classify = model.vocabulary is not None
    with progress_bar("extracting", "picture") as progress:
        done = 0
        for files, batch in picture_batches(list(paths), cfg, batch_size):
            found = region_features(model, batch, classify=classify)
            for file, features in zip(files, found, strict=True):
                features.save(paths[file])
            done += len(files)
            progress(done, len(paths))
