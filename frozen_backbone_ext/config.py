"""Configuration keys of the frozen-backbone package.

``MODEL.BACKBONE_FREEZE`` and ``MODEL.ADAPTERS`` work with every detector of the project.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.config import add_default, add_node
from ext_common.registries import CONFIG_REGISTRY


@CONFIG_REGISTRY.register()
def add_frozen_backbone_config(cfg: CfgNode) -> None:
    """Add the package's keys to a configuration that has detectron2's and the common ones."""
    _add_freeze(add_node(cfg.MODEL, "BACKBONE_FREEZE"))
    _add_adapters(add_node(cfg.MODEL, "ADAPTERS"))
    _add_parts(cfg.MODEL)
    _add_second_stage(add_node(cfg.MODEL, "CLASSIFIER_STAGE2"))
    _add_copy_paste(add_node(cfg.INPUT, "COPY_PASTE"))
    _add_schedule(cfg.SOLVER)


def _add_freeze(node: CfgNode) -> None:
    # trunk = the classification network below neck and heads never changes; empty = trained
    add_default(node, "POLICY", "")
    add_default(node, "WEIGHTS", "")  # weights of the trunk alone, loaded when the model is built
    add_default(node, "SAVE", True)  # False: checkpoints hold the trunk's hash instead of it
    add_default(node, "HASH", "")  # first digits of the SHA-256 that its weights must have
    add_default(node, "FOLD_BN", False)  # compute with batch norms folded into convolutions
    add_default(node, "DTYPE", "fp32")  # fp32 | bf16 | fp16: of the trunk's computation
    add_default(node, "CHANNELS_LAST", False)  # memory layout of the trunk's computation
    add_default(node, "COMPILE", False)  # torch.compile, for pictures of one size
    # keep the trunk's maps in this folder, for pictures that come again pixel by pixel; empty = no
    add_default(node, "CACHE_FOLDER", "")
    add_default(node, "ALLOW_RANDOM", False)  # train on a trunk that no weights were loaded into
    # whose pixels the trunk was trained on: torchvision | msra | clip | inception; empty = not
    # checked (timm's backbones are checked always); auto = write INPUT.FORMAT, MODEL.PIXEL_MEAN
    # and PIXEL_STD as timm describes the weights
    add_default(node, "PIXELS", "")


def _add_adapters(node: CfgNode) -> None:
    # with MODEL.BACKBONE.NAME build_adapted_backbone: the builder of the backbone that gets them
    add_default(node, "BACKBONE", "")
    add_default(node, "FORM", "parallel")  # parallel (can be folded away) | series
    add_default(node, "STAGES", ())  # res2..res5, or layer1..layer4 of timm; empty = all
    add_default(node, "NORM", "frozen")  # of the norm behind: frozen | affine | own


def _add_parts(model: CfgNode) -> None:
    # norm and activation of this package's necks and heads
    parts = add_node(model, "DETECTOR_PARTS")
    add_default(parts, "NORM", "SyncBN")  # SyncBN | BN | GN | FrozenBN | empty
    add_default(parts, "NORM_EPS", 1e-4)  # added to the variance
    add_default(parts, "NORM_MOMENTUM", 0.003)  # of the new batch in the running statistics
    add_default(parts, "ACTIVATION", "silu")  # silu | relu
    # backbones made of a trunk and a neck of this package
    pyramid = add_node(model, "PYRAMID")
    add_default(pyramid, "BOTTOM_UP", "build_resnet_backbone")  # builder of the trunk
    add_default(pyramid, "NECK", "nasfpn")  # nasfpn | fpn | conv
    add_default(pyramid, "WIDTH", 256)  # channels of every level
    add_default(pyramid, "MAX_LEVEL", 6)  # coarsest level of fpn and conv (stride 2^level)
    add_default(pyramid, "NUM_CONVS", 1)  # of the neck conv, per level
    nasfpn = add_node(model, "NASFPN")
    add_default(nasfpn, "REPEATS", 5)  # passes through the graph; 7 in the NAS-FPN paper
    add_default(nasfpn, "VARIANT", "tf")  # tf (the paper's release) | mm (mmdetection)
    add_default(nasfpn, "POOL", "")  # of attention merges: max | avg; empty = as VARIANT
    add_default(nasfpn, "GATE", "")  # they are gated by the coarse | fine map; empty = as VARIANT
    # 1x1 convolution before P6 and P7 are pooled: yes | no; empty = as VARIANT
    add_default(nasfpn, "EXTRA_LEVEL_CONV", "")
    add_default(nasfpn, "MERGE", "searched")  # searched | sum
    add_default(nasfpn, "CELL", "conv")  # conv | bottleneck (EfficientNet-B7 recipe)
    add_default(nasfpn, "DROP_CONNECT", 0.0)  # of bottleneck cells
    add_default(nasfpn, "CHECKPOINT", False)  # recompute repeats in the backward pass
    # cascade as in the paper's release
    cascade = model.ROI_BOX_CASCADE_HEAD
    add_default(cascade, "AVERAGE_LOSSES", False)  # False: their sum, as detectron2
    add_default(cascade, "AVERAGE_LOGITS", False)  # at test; False: probabilities, as detectron2


def _add_second_stage(node: CfgNode) -> None:
    # train the box classifiers only, all else as it is, with a class-balanced loss
    add_default(node, "ENABLED", False)
    add_default(node, "BETA", 0.999)  # 0 = all classes alike
    add_default(node, "REDUCTION", "mean")  # mean | weighted_mean
    add_default(node, "COUNT", "instances")  # what is counted per class: instances | images
    # keep the regions' features in this folder, for pictures that are shown the same way each
    # time; only the box heads' losses are computed then; empty = no
    add_default(node, "CACHE_FOLDER", "")


def _add_copy_paste(node: CfgNode) -> None:
    # with DATALOADER.SAMPLER_TRAIN CopyPasteTrainingSampler or CopyPasteRepeatFactorTrainingSampler
    add_default(node, "PROB", 1.0)  # chance that a picture gets objects of another one
    add_default(node, "MAX_OBJECTS", 0)  # most objects pasted; 0 = no limit
    add_default(node, "BOX_RULE", "mask")  # mask (mmdetection) | coord (TPU recipe)
    add_default(node, "BOX_THRESHOLD", 10.0)  # pixels by which an occluded object's box moves
    add_default(node, "AREA_THRESHOLD", 300.0)  # occluded objects with as few pixels are removed
    add_default(node, "BLEND", "none")  # none | gaussian


def _add_schedule(solver: CfgNode) -> None:
    # a schedule in images seen, for any batch size: sets MAX_ITER, STEPS, WARMUP_* and BASE_LR
    images = add_node(solver, "IMAGES")
    add_default(images, "EPOCHS", 0.0)  # 0 = the schedule is given in iterations
    add_default(images, "PER_EPOCH", 0)  # images of an epoch (118272 = 1848 batches of 64)
    add_default(images, "DROP_EPOCHS", ())  # where the learning rate falls by GAMMA
    add_default(images, "WARMUP", 0)  # images of the linear warm-up
    add_default(images, "LR_PER_IMAGE", 0.0)  # BASE_LR / IMS_PER_BATCH; 0 = BASE_LR as it is
    ema = add_node(solver, "EMA")
    add_default(ema, "ENABLED", False)  # also keep a moving average of the trained weights
    add_default(ema, "DECAY", 0.9998)  # of the old average at each step
