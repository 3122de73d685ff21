"""The model of the command line."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode

from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import WeightsError
from ext_common.packages import register_all
from ext_common.predictor import Predictor

from .vocabulary import choose_vocabulary

_ONE_CLASS = "MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL"


def build_predictor(arguments: argparse.Namespace) -> Predictor:
    """The model of the configuration with the vocabulary of the command line."""
    register_all()
    cfg: CfgNode = load_config(arguments.config_file, arguments.opts)
    if not cfg.MODEL.WEIGHTS:
        raise WeightsError(
            "no weights: the model would be random",
            where="MODEL.WEIGHTS",
            fix="add --opts MODEL.WEIGHTS FILE",
        )
    register_from_config(cfg)
    # detections below the threshold are not worth computing masks for
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = arguments.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = arguments.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = arguments.confidence_threshold
    if _ONE_CLASS not in arguments.opts[::2]:  # said there, it is the user's own choice
        cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL = not arguments.pred_all_class
    return Predictor(cfg, vocabulary=choose_vocabulary(arguments), device=arguments.device)
