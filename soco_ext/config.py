"""Configuration keys of SoCo (specification sections 2 to 4 and 7), with the released defaults.

The defaults are those of the released FPN scripts, not of the option parser where the two differ.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.config import add_default, add_node
from ext_common.registries import CONFIG_REGISTRY


@CONFIG_REGISTRY.register()
def add_soco_config(cfg: CfgNode) -> None:
    """Add SoCo's keys to a configuration that has detectron2's and the common ones."""
    soco = add_node(cfg, "SOCO")
    _add_proposals(add_node(soco, "PROPOSALS"))
    _add_views(add_node(soco, "VIEWS"))
    _add_model(soco)
    _add_pyramid(add_node(soco, "PYRAMID"))
    _add_schedule(add_node(soco, "SCHEDULE"))
    lars = add_node(cfg.SOLVER, "LARS")
    add_default(lars, "TRUST", 0.001)  # trust coefficient
    add_default(lars, "EPS", 1e-8)  # added to the norm of the gradient
    _add_monitor(add_node(soco, "MONITOR"))
    _add_linear(add_node(soco, "LINEAR"))


def _add_proposals(node: CfgNode) -> None:
    """A field of ``soco_ext.data.view_options.ProposalOptions`` each, with the same default."""
    # file | random (drawn anew each time) | whole_image (one box: contrast of images, not objects)
    add_default(node, "SOURCE", "file")
    add_default(node, "FILE", "")  # what prepare_data.py soco-proposals wrote
    add_default(node, "STRATEGY", "")  # filter for its boxes, such as ratio3size0308; empty = none
    add_default(node, "MISSING", "error")  # image that it lacks: error | random | whole_image
    add_default(node, "EMPTY", "whole_image")  # image without boxes: whole_image | random
    add_default(node, "MAX_PROPS", 32)  # random boxes: tries per image
    add_default(node, "ASPECT_RATIO", 3.0)  # random boxes: width / height from 1 / this to this
    add_default(node, "MIN_SIZE_RATIO", 0.3)  # random boxes: sqrt(box area / image area), least
    add_default(node, "MAX_SIZE_RATIO", 0.8)  # random boxes: and largest


def _add_views(node: CfgNode) -> None:
    """A field of ``soco_ext.data.view_options.ViewOptions`` each, with the same default."""
    # fpn_3view (SoCo) | star_4view (SoCo*) | c4_2view
    add_default(node, "PLAN", "fpn_3view")
    # any views instead of a plan: whole:224, crop:112, crop2:112 (the crop of view 2, smaller)
    add_default(node, "VIEWS", ())
    add_default(node, "IMAGE_SIZE", 224)  # views 1 and 2, pixels
    add_default(node, "IMAGE3_SIZE", 0)  # view 3; 0 = half of IMAGE_SIZE, 192 in SoCo*
    add_default(node, "IMAGE4_SIZE", 112)  # view 4 of SoCo*
    # new_crop (released code) | reduced_second (the paper: view 2, smaller)
    add_default(node, "THIRD_VIEW", "new_crop")
    add_default(node, "CROP", 0.5)  # least share of the image's area in a crop; 0.6 for c4
    add_default(node, "COLOUR", "byol")  # byol | none (pixels as read)
    add_default(node, "FLIP", 0.5)  # chance of a horizontal flip, of each view
    add_default(node, "SELECT_STRATEGY", "random")  # random | top | area | none (all)
    add_default(node, "SELECT_K", 4)  # boxes per pair of views
    add_default(node, "PADDING_K", 4)  # padded to so many with repetitions
    add_default(node, "MAX_TRIES", 5)  # draws of the crops until enough boxes are in both views
    add_default(node, "JITTER_PROB", 0.5)  # share of the boxes of view 1 that are moved
    add_default(node, "JITTER_RATIO", 0.1)  # by at most this share of their size
    add_default(node, "AWARE_RANGE", [48, 96, 192, 224, 0])  # largest box side (pixels) per level
    add_default(node, "AWARE_START", 0)  # first entry that is used
    add_default(node, "AWARE_END", 4)  # entry after the last that is used
    # squares are blanked inside the boxes of all views but the first (100-epoch and C4 scripts)
    add_default(node, "CUTOUT", False)
    add_default(node, "CUTOUT_PROB", 0.5)  # share of the boxes
    add_default(node, "CUTOUT_RATIO_MIN", 0.1)  # blanked share of a box's area, least
    add_default(node, "CUTOUT_RATIO_MAX", 0.3)  # and largest


def _add_model(soco: CfgNode) -> None:
    """Networks; the depth is ``MODEL.RESNETS.DEPTH``, the pyramid's ``MODEL.FPN.OUT_CHANNELS``."""
    add_default(soco, "NORM", "SyncBN")  # SyncBN (BN where there is one process) | BN
    # dense: every box on every level, as released | sparse: only on its own level (faster)
    add_default(soco, "LEVEL_USE", "dense")
    # each: the backbone runs once per view, as released | grouped: views of one size share a run,
    # with statistics of their own (the same numbers) | joint: with common statistics
    add_default(soco, "VIEW_PASSES", "each")
    # memory layout of the convolutions (same numbers up to rounding, faster); False = torch's own
    add_default(soco, "CHANNELS_LAST", True)
    add_default(soco, "BASE_WIDTH", 64)  # channels of the stem; smaller for tests
    # residual branches start at zero, as released; a run of 100 steps hardly moves them from there
    add_default(soco, "ZERO_RESIDUALS", True)
    add_default(soco, "POOLER_RESOLUTION", 7)  # side of a pooled region; C4 always has 14
    add_default(soco, "POOLER_ALIGNED", True)  # half-pixel rule of RoIAlign
    add_default(soco, "HEAD_CONVS", 4)  # convolutions of the region head
    add_default(soco, "HEAD_DIM", 1024)  # its output
    add_default(soco, "HIDDEN_DIM", 4096)  # hidden layer of projector and predictor
    add_default(soco, "EMBEDDING_DIM", 256)  # what is compared
    add_default(soco, "MOMENTUM", 0.99)  # of the target network at the start; it rises to 1
    # steps after which the target stands still; 0 = SOLVER.MAX_ITER. The released code counts
    # images / batch * epochs without rounding an epoch down: 62556 for 100 epochs of ImageNet
    add_default(soco, "MOMENTUM_STEPS", 0)


def _add_pyramid(node: CfgNode) -> None:
    """Levels of the pyramid, as many as ``SOCO.VIEWS.AWARE_START`` to ``AWARE_END``."""
    add_default(node, "START_LEVEL", 0)  # first map of the encoder that is used; 0 = C2
    add_default(node, "END_LEVEL", -1)  # map after the last that is used; -1 = all
    add_default(node, "NUM_OUTS", 4)  # levels; those beyond the maps are coarser and coarser
    # how a coarser level is made: max_pool (every second pixel) | conv_on_input (convolution of
    # the encoder's last map) | conv_on_output (of the pyramid's)
    add_default(node, "EXTRA_LEVELS", "max_pool")
    add_default(node, "RELU_BEFORE_EXTRA_CONVS", False)  # before all of them but the first


def _add_schedule(node: CfgNode) -> None:
    """Of ``SOLVER.LR_SCHEDULER_NAME`` SoCoCosine and SoCoStep; warm-up is ``SOLVER.WARMUP_ITERS``."""
    add_default(node, "MULTIPLIER", 100.0)  # warm-up starts at the learning rate / this
    add_default(node, "MIN_LR", 1e-6)  # where the cosine ends


def _add_monitor(node: CfgNode) -> None:
    add_default(node, "PERIOD", 20)  # steps between two measurements of collapse; 0 = never


def _add_linear(node: CfgNode) -> None:
    """Linear evaluation: META_ARCHITECTURE LinearClassifier, SAMPLER_TRAIN LinearImages."""
    add_default(node, "NUM_CLASSES", 1000)  # classes of the linear layer
    # dataset (a folder per class) that is scored during and after training; empty = none
    add_default(node, "TEST", "")
    add_default(node, "CROP", 0.08)  # least share of the image's area in a training crop
    add_default(node, "IMAGE_SIZE", 224)  # side of a crop, pixels
    add_default(node, "RESIZE_SIZE", 256)  # shorter side at test, before the centre crop
    # released: the statistics of the frozen encoder's batch norms keep adapting
    add_default(node, "ADAPT_STATISTICS", True)
