"""Configuration keys of Detic, with the names and defaults of the published files.

Keys keep the published names (specification section 8), so that users' YAML files carry over.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.config import add_default, add_node
from ext_common.registries import CONFIG_REGISTRY

# published keys that switched debugging prints and dumps, or parts that no published configuration
# uses (DLA backbones, equalisation loss): accepted, without effect
DROPPED_KEYS = (
    "DEBUG",
    "DEBUG_SHOW_NAME",
    "EVAL_AP_FIX",
    "EVAL_CAT_SPEC_AR",
    "EVAL_PRED_AR",
    "GEN_PSEDO_LABELS",
    "IS_DEBUG",
    "QUICK_DEBUG",
    "SAVE_DEBUG",
    "SAVE_DEBUG_PATH",
    "SAVE_PTH",
    "VIS_THRESH",
    "MODEL.DLA",
    "MODEL.ROI_BOX_HEAD.USE_EQL_LOSS",
    "MODEL.ROI_BOX_HEAD.EQL_FREQ_CAT",
)


@CONFIG_REGISTRY.register()
def add_detic_config(cfg: CfgNode) -> None:
    """Add Detic's keys to a configuration that has detectron2's and the common ones."""
    # Mixed supervision: batches carry image labels (docs/detic.md)
    add_default(cfg, "WITH_IMAGE_LABELS", False)
    # score the recall of the proposals as well (box_proposals, docs/evaluation.md)
    add_default(cfg, "EVAL_PROPOSAL_AR", False)
    add_default(cfg, "FP16", False)  # half precision in the backbone alone, as published
    _add_box_head(cfg.MODEL.ROI_BOX_HEAD)
    add_default(cfg.MODEL.ROI_HEADS, "MASK_WEIGHT", 1.0)  # factor of the mask loss
    # True: a batch whose first picture shows no object trains no masks, as in the original
    add_default(cfg.MODEL.ROI_HEADS, "MASKS_NEED_FIRST_IMAGE", False)
    # keep the best class of each region only
    add_default(cfg.MODEL.ROI_HEADS, "ONE_CLASS_PER_PROPOSAL", False)
    _add_model(cfg.MODEL)
    _add_centernet(cfg)
    _add_deformable_detr(add_node(cfg.MODEL, "DETR"))
    _add_loader(cfg.DATALOADER)
    for key in DROPPED_KEYS:
        cfg.register_deprecated_key(key)


def _add_box_head(head: CfgNode) -> None:
    # Classifier (specification section 2)
    add_default(head, "USE_ZEROSHOT_CLS", False)  # classify by text embeddings
    # [C, 512] text embeddings, or "rand"; MODEL.VOCABULARY overrides it
    add_default(head, "ZEROSHOT_WEIGHT_PATH", "datasets/metadata/lvis_v1_clip_a+cname.npy")
    add_default(head, "ZEROSHOT_WEIGHT_DIM", 512)  # width of the embeddings
    add_default(head, "NORM_WEIGHT", True)  # cosine similarity
    add_default(head, "NORM_TEMP", 50.0)  # its temperature
    add_default(head, "USE_BIAS", 0.0)  # a learned scalar bias, starting here; only if < 0
    # Losses of box batches (section 3)
    add_default(head, "USE_SIGMOID_CE", False)  # binary cross-entropy per class instead of softmax
    add_default(head, "PRIOR_PROB", 0.01)  # initial score of an ordinary classifier
    add_default(head, "USE_FED_LOSS", False)  # federated loss: sampled classes only
    # image counts per class; where the file is missing they are taken from the training data
    add_default(head, "CAT_FREQ_PATH", "datasets/metadata/lvis_v1_train_cat_info.json")
    add_default(head, "FED_LOSS_NUM_CAT", 50)  # classes per step
    # the background takes one of these places, as published
    add_default(head, "FED_LOSS_COUNT_BACKGROUND", True)
    add_default(head, "FED_LOSS_FREQ_WEIGHT", 0.5)  # sampling weight = image count ** this
    add_default(head, "IGNORE_ZERO_CATS", False)  # no gradient to classes without training images
    # Losses of image-label batches (section 4)

    # max_size | max_score | min_loss | first | image | wsddn
    add_default(head, "IMAGE_LABEL_LOSS", "max_size")
    # max_size leaves out the last region, as published; False: only one that ADD_IMAGE_BOX appended
    add_default(head, "MAX_SIZE_IGNORE_LAST", True)
    add_default(head, "IMAGE_LOSS_WEIGHT", 0.1)  # factor of the image-label loss
    # image labels and captions teach all stages, as published; False: the first one alone
    add_default(head, "IMAGE_LOSS_ALL_STAGES", True)
    add_default(head, "WS_NUM_PROPS", 128)  # proposals per image-label picture
    add_default(head, "ADD_IMAGE_BOX", False)  # append a box of the whole picture
    add_default(head, "IMAGE_BOX_SIZE", 1.0)  # its size as a share of width and height
    add_default(head, "SOFTMAX_WEAK_LOSS", False)  # softmax instead of sigmoid on the chosen region
    add_default(head, "WITH_SOFTMAX_PROP", False)  # extra branch of wsddn
    add_default(head, "CAPTION_WEIGHT", 1.0)  # factor of the caption loss
    add_default(head, "NEG_CAP_WEIGHT", 0.125)  # weight of other images' captions
    add_default(head, "ADD_FEATURE_TO_PROP", False)  # keep region features on the proposals
    # Inference (section 1.3)
    add_default(head, "MULT_PROPOSAL_SCORE", False)  # sqrt(class score * proposal score)


def _add_model(model: CfgNode) -> None:
    # Captions and very large vocabularies (section 5)
    add_default(model, "WITH_CAPTION", False)  # batches carry captions
    add_default(model, "SYNC_CAPTION_BATCH", False)  # negatives from all processes
    add_default(model, "CAP_BATCH_RATIO", 4)  # caption batch size / box batch size
    add_default(model, "DYNAMIC_CLASSIFIER", False)  # sample the classes of a step
    add_default(model, "NUM_SAMPLE_CATS", 50)  # how many
    # Other vocabularies at test: one embedding file and class count per test set
    add_default(model, "RESET_CLS_TESTS", False)  # each test set brings its own vocabulary
    add_default(model, "TEST_CLASSIFIERS", [])  # embedding file of each test set
    add_default(model, "TEST_NUM_CLASSES", [])  # class count of each test set
    add_default(model, "DATASET_LOSS_WEIGHT", [])  # factor of all losses, per training dataset


def _add_centernet(cfg: CfgNode) -> None:
    # do not move box centres into the picture before CenterNet's targets are made
    add_default(cfg.INPUT, "NOT_CLAMP_BOX", False)
    node = add_node(cfg.MODEL, "CENTERNET")
    add_default(node, "NUM_CLASSES", 80)  # classes of the class heatmaps
    # pyramid levels that are searched
    add_default(node, "IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"])
    add_default(node, "FPN_STRIDES", [8, 16, 32, 64, 128])  # stride of each level, pixels
    add_default(node, "PRIOR_PROB", 0.01)  # initial score of the heatmaps
    add_default(node, "INFERENCE_TH", 0.05)  # candidates score above this
    add_default(node, "CENTER_NMS", False)  # 3x3 peaks instead of box NMS
    add_default(node, "NMS_TH_TRAIN", 0.6)  # IoU of the proposal NMS in training
    add_default(node, "NMS_TH_TEST", 0.6)  # IoU of the proposal NMS at test
    add_default(node, "PRE_NMS_TOPK_TRAIN", 1000)  # candidates per level in training
    add_default(node, "POST_NMS_TOPK_TRAIN", 100)  # proposals kept in training
    add_default(node, "PRE_NMS_TOPK_TEST", 1000)  # candidates per level at test
    add_default(node, "POST_NMS_TOPK_TEST", 100)  # proposals kept at test
    add_default(node, "NORM", "GN")  # norm of the towers
    add_default(node, "USE_DEFORMABLE", False)  # the last convolution of each tower is deformable
    add_default(node, "NUM_CLS_CONVS", 4)  # convolutions of the class tower
    add_default(node, "NUM_BOX_CONVS", 4)  # convolutions of the box tower
    add_default(node, "NUM_SHARE_CONVS", 0)  # convolutions before the two towers
    add_default(node, "LOC_LOSS_TYPE", "giou")  # giou | iou | linear_iou
    add_default(node, "SIGMOID_CLAMP", 1e-4)  # scores stay this far from 0 and 1 in the loss
    add_default(node, "HM_MIN_OVERLAP", 0.8)  # heatmap radius: least IoU of a shifted box
    add_default(node, "MIN_RADIUS", 4)  # least radius of a heatmap peak, pixels
    # half diagonals (pixels) that each level is responsible for
    add_default(node, "SOI", [[0, 80], [64, 160], [128, 320], [256, 640], [512, 10000000]])
    add_default(node, "POS_WEIGHT", 1.0)  # factor of the positive heatmap loss
    add_default(node, "NEG_WEIGHT", 1.0)  # factor of the negative heatmap loss
    add_default(node, "REG_WEIGHT", 2.0)  # factor of the box loss
    # focal loss: exponent that spares negatives near a centre
    add_default(node, "HM_FOCAL_BETA", 4)
    add_default(node, "HM_FOCAL_ALPHA", 0.25)  # focal loss: weight of positives
    add_default(node, "LOSS_GAMMA", 2.0)  # focal loss: exponent of the error
    add_default(node, "WITH_AGN_HM", False)  # class-agnostic heatmap
    add_default(node, "ONLY_PROPOSAL", False)  # no class heatmaps
    add_default(node, "AS_PROPOSAL", False)  # give proposals although class heatmaps exist
    add_default(node, "IGNORE_HIGH_FP", -1.0)  # drop negatives that score at least this
    add_default(node, "MORE_POS", False)  # more positives around each centre
    add_default(node, "MORE_POS_THRESH", 0.2)  # their regression loss is below this
    add_default(node, "MORE_POS_TOPK", 9)  # at most so many per box
    add_default(node, "NOT_NORM_REG", True)  # unweighted box loss
    add_default(node, "NOT_NMS", False)  # no NMS at all
    add_default(node, "NO_REDUCE", False)  # normalise by the local count of positives


def _add_deformable_detr(node: CfgNode) -> None:
    # Deformable-DETR variant (section 11)
    add_default(node, "NUM_CLASSES", 80)  # classes of the class head
    add_default(node, "FROZEN_WEIGHTS", "")  # refused: there is no second set of weights
    add_default(node, "GIOU_WEIGHT", 2.0)  # factor of the GIoU loss
    add_default(node, "L1_WEIGHT", 5.0)  # factor of the L1 loss
    add_default(node, "CLS_WEIGHT", 2.0)  # factor of the class loss
    add_default(node, "WEAK_WEIGHT", 0.1)  # of the image-label loss
    add_default(node, "NO_OBJECT_WEIGHT", 0.1)  # weight of the no-object class (softmax form)
    add_default(node, "FOCAL_ALPHA", 0.25)  # focal loss: weight of positives
    add_default(node, "DEEP_SUPERVISION", True)  # losses on every decoder layer
    add_default(node, "USE_FED_LOSS", False)  # federated loss on sampled classes
    add_default(node, "NUM_FEATURE_LEVELS", 4)  # feature maps that are attended to
    add_default(node, "TWO_STAGE", False)  # queries start from encoder proposals
    add_default(node, "WITH_BOX_REFINE", False)  # each layer refines the boxes of the one before
    add_default(node, "NUM_OBJECT_QUERIES", 100)  # detections per image
    add_default(node, "HIDDEN_DIM", 256)  # width of the transformer
    add_default(node, "NHEADS", 8)  # attention heads
    add_default(node, "DIM_FEEDFORWARD", 2048)  # width of the feed-forward layers
    add_default(node, "ENC_LAYERS", 6)  # encoder layers
    add_default(node, "DEC_LAYERS", 6)  # decoder layers
    add_default(node, "DROPOUT", 0.1)  # dropout of the transformer
    add_default(node, "PRE_NORM", False)  # normalise before each sub-layer


def _add_loader(loader: CfgNode) -> None:
    # MultiDatasetSampler: one entry per name in DATASETS.TRAIN (section 6.1)
    add_default(loader, "DATASET_RATIO", [1, 1])  # share of samples
    add_default(loader, "USE_RFS", [False, False])  # repeat-factor sampling
    add_default(loader, "DATASET_ANN", ["box", "box"])  # box | image | caption | captiontag | prop
    add_default(loader, "MULTI_DATASET_GROUPING", False)  # a batch has one dataset and one aspect
    add_default(loader, "USE_DIFF_BS_SIZE", False)  # the five lists below apply
    add_default(loader, "DATASET_BS", [8, 32])  # batch size per GPU
    add_default(loader, "DATASET_INPUT_SIZE", [896, 384])  # EfficientDetResizeCrop
    # EfficientDetResizeCrop: scale range of each dataset
    add_default(loader, "DATASET_INPUT_SCALE", [(0.1, 2.0), (0.5, 1.5)])
    add_default(loader, "DATASET_MIN_SIZES", [(640, 800), (320, 400)])  # ResizeShortestEdge
    # ResizeShortestEdge: longest side of each dataset
    add_default(loader, "DATASET_MAX_SIZES", [1333, 667])
    # all processes take the same kind of batch in a step (the original mixes them)
    add_default(loader, "SAME_DATASET_PER_STEP", False)
    # ImageNet-21k from tar files (section 6.4)
    add_default(loader, "USE_TAR_DATASET", False)
    # array of tar paths, one per class
    add_default(loader, "TARFILE_PATH", "datasets/imagenet/metadata-22k/tar_files.npy")
    # folder with the index of each tar
    add_default(loader, "TAR_INDEX_DIR", "datasets/imagenet/metadata-22k/tarindex_npy")
