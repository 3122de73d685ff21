"""Configuration keys of RegionCLIP, with the names and defaults of the published files.

Keys keep the published names (specification section 8), so that users' YAML files carry over; what
the original accepts without effect is accepted here too. Keys of our own say so.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.config import add_default, add_node
from ext_common.registries import CONFIG_REGISTRY

# accepted and without effect in the original too (specification 8 and 11.19), or read only by its
# unreleased CLIPRCNN
DROPPED_KEYS = (
    "MODEL.CLIP.OPENSET_TEST_NUM_CLASSES",
    "MODEL.CLIP.IMS_PER_BATCH_TEST",
    "MODEL.CLIP.GRID_REGIONS",
    "MODEL.CLIP.RUN_CVPR_OVR",
    "DATASETS.FACTORY_TEST",
    "DATASETS.PATH_TEST",
    "DATASETS.AUX",
    "DATASETS.FACTORY_AUX",
    "DATASETS.PATH_AUX",
    "DATASETS.MAX_SEQ_LENGTH",
    "DATASETS.LABELMAP_FILE",
    "DATASETS.ATTR_LABELMAP_FILE",
    "DATASETS.FILTERED_CLASSIFICATION_DATASETS",
    "DATASETS.HIERARCHY_FILE",
    "DATASETS.ROOT",
    "DATASETS.VAL_SET",
    "DATASETS.BOX_EXTRA_FIELDS",
    "DATASETS.NUM_CLASSES",
    "DATASETS.TRAIN_SET",
    "DATASETS.TEST_SET",
    "AUG.COLOR_JITTER",
    "AUG.GRAY_SCALE",
    "AUG.GAUSSIAN_BLUR",
    "AUG.DROPBLOCK_LAYERS",
    "AUG.DROPBLOCK_KEEP_PROB",
    "AUG.DROPBLOCK_BLOCK_SIZE",
    "AUG.MIXUP_PROB",
    "AUG.MIXUP",
    "AUG.MIXCUT",
    "AUG.MIXCUT_MINMAX",
    "AUG.MIXUP_SWITCH_PROB",
    "AUG.MIXUP_MODE",
    "AUG.MIXCUT_AND_MIXUP",
    "AUG.TEST",
)


@CONFIG_REGISTRY.register()
def add_regionclip_config(cfg: CfgNode) -> None:
    """Add RegionCLIP's keys to a configuration that has detectron2's and the common ones."""
    clip = add_node(cfg.MODEL, "CLIP")
    _add_encoders(clip)
    _add_regions(clip)
    _add_detector(clip)
    _add_pretraining(clip)
    _add_soft_nms(cfg.MODEL.ROI_HEADS)
    _add_image_text_data(cfg)
    for key in DROPPED_KEYS:
        cfg.register_deprecated_key(key)


def _add_encoders(clip: CfgNode) -> None:
    # ours: RN50 | RN101 | RN50x4 | RN50x16 | custom; empty = as MODEL.RESNETS.DEPTH says (50, 101,
    # and 200 for RN50x4)
    add_default(clip, "IMAGE_ENCODER", "")
    # ours: OpenAI .pt or open_clip file for the image encoder (in pretraining also teacher and text
    # encoder), loaded before MODEL.WEIGHTS
    add_default(clip, "ENCODER_WEIGHTS", "")
    _add_custom(add_node(clip, "CUSTOM_ENCODER"))
    # the pretraining teacher
    add_default(clip, "TEACHER_RESNETS_DEPTH", 50)  # 50 | 101 | 200 (RN50x4)
    add_default(clip, "TEACHER_POOLER_RESOLUTION", 14)  # 18 for RN50x4
    add_default(clip, "TEACHER_IMAGE_ENCODER", "")  # ours: as IMAGE_ENCODER
    add_default(clip, "TEACHER_ENCODER_WEIGHTS", "")  # ours: another CLIP than ENCODER_WEIGHTS
    _add_custom(add_node(clip, "TEACHER_CUSTOM_ENCODER"))
    # the text encoder that pretraining and GET_CONCEPT_EMB build (ours; defaults are RN50's)
    text = add_node(clip, "LANG_ENCODER")
    add_default(text, "WIDTH", 0)  # 0 = that of the image encoder's CLIP
    add_default(text, "HEADS", 0)  # 0 = WIDTH / 64
    add_default(text, "LAYERS", 12)  # residual blocks
    add_default(text, "CONTEXT", 77)  # tokens of a text
    add_default(text, "VOCABULARY", 49408)  # tokens that are known
    add_default(clip, "GET_CONCEPT_EMB", False)  # build the text encoder in the detector


def _add_custom(node: CfgNode) -> None:
    """Sizes of an image encoder named "custom" (ours), for experiments without published weights."""
    add_default(node, "WIDTH", 64)  # channels behind the stem
    add_default(node, "LAYERS", [3, 4, 6, 3])  # blocks of the four stages
    add_default(node, "HEADS", 32)  # attention heads of the pool
    add_default(node, "EMBED_DIM", 1024)  # width of the joint embedding
    add_default(node, "RESOLUTION", 224)  # pixels: the pool sees (RESOLUTION / 32)^2 tokens


def _add_regions(clip: CfgNode) -> None:
    # GT | RPN; pretraining: RPN | RANDOM, and ours: GRID | FILE
    add_default(clip, "CROP_REGION_TYPE", "")
    add_default(clip, "BB_RPN_WEIGHTS", None)  # checkpoint of the offline branch
    # YAML of the detector whose backbone and RPN give the regions
    add_default(clip, "OFFLINE_RPN_CONFIG", None)
    add_default(clip, "OFFLINE_RPN_OPTS", [])  # ours: KEY VALUE pairs for that YAML
    add_default(clip, "OFFLINE_RPN_NMS_THRESH", None)  # IoU; replaces that of the YAML
    # proposals kept per image, replaces that of the YAML (detectors)
    add_default(clip, "OFFLINE_RPN_POST_NMS_TOPK_TEST", None)
    # the LSJ detector: SyncBN everywhere, two convolutions in the RPN head
    add_default(clip, "OFFLINE_RPN_LSJ_PRETRAINED", False)


def _add_detector(clip: CfgNode) -> None:
    # Classifier (specification 4.2)
    add_default(clip, "USE_TEXT_EMB_CLASSIFIER", False)  # text embeddings, and the attention pool
    # class embeddings [K, D] of training; MODEL.VOCABULARY overrides them
    add_default(clip, "TEXT_EMB_PATH", None)
    add_default(clip, "TEXT_EMB_DIM", 1024)  # their width
    add_default(clip, "OPENSET_TEST_TEXT_EMB_PATH", None)  # class embeddings at test
    add_default(clip, "CLSS_TEMP", 0.01)  # temperature, here and in pretraining
    add_default(clip, "LEARNED_BACKGROUND", False)  # ours: train the background embedding
    # Losses (4.4) and sampling (4.1)
    add_default(clip, "BG_CLS_LOSS_WEIGHT", None)  # weight of background regions
    add_default(clip, "FOCAL_SCALED_LOSS", None)  # exponent of focal scaling
    add_default(clip, "ONLY_SAMPLE_FG_PROPOSALS", False)  # up to 128 foreground regions only
    # Inference (5.1)
    add_default(clip, "NO_BOX_DELTA", False)  # proposals are the boxes
    add_default(clip, "MULTIPLY_RPN_SCORE", False)  # geometric mean with the objectness
    # ours: the objectness score in that mean instead of the published raw logit
    add_default(clip, "RPN_SCORE_SIGMOID", False)
    add_default(clip, "VIS", False)  # report the class score before that mean


def _add_pretraining(clip: CfgNode) -> None:
    add_default(clip, "PRETRAIN_IMG_TXT_LEVEL", True)  # image-text loss
    add_default(clip, "PRETRAIN_ONLY_EOT", False)  # a caption is its end-of-text feature
    add_default(clip, "PRETRAIN_RPN_REGIONS", None)  # proposals kept by the RPN
    add_default(clip, "PRETRAIN_SAMPLE_REGIONS", None)  # regions drawn from them
    add_default(clip, "GATHER_GPUS", False)  # image-text loss over all processes
    # concept embeddings [C, D] of the student; None = no region losses
    add_default(clip, "CONCEPT_POOL_EMB", None)
    add_default(clip, "TEACHER_CONCEPT_POOL_EMB", None)  # of the teacher; None = the student's
    add_default(clip, "CONCEPT_THRES", None)  # least confidence of a pseudo label
    # ours: temperature of the teacher's softmax, 0.01 as published whatever CLSS_TEMP is; a CLIP
    # that was trained with another wants its own
    add_default(clip, "TEACHER_TEMP", 0.01)
    # ours: pretrain without weights for encoders and RPN (experiments from scratch, tests)
    add_default(clip, "ALLOW_RANDOM_INIT", False)
    # ours: proposals of `prepare_data.py proposals`, for CROP_REGION_TYPE FILE
    add_default(clip, "PROPOSAL_FILE", "")


def _add_soft_nms(heads: CfgNode) -> None:
    add_default(heads, "SOFT_NMS_ENABLED", False)  # lower the scores of overlapping boxes
    add_default(heads, "SOFT_NMS_METHOD", "gaussian")  # gaussian | linear | hard
    add_default(heads, "SOFT_NMS_SIGMA", 0.5)  # gaussian: exp(-IoU^2 / sigma)
    add_default(heads, "SOFT_NMS_PRUNE", 0.001)  # scores that fall to this are dropped


def _add_image_text_data(cfg: CfgNode) -> None:
    add_default(cfg, "INPUT_DIR", "./datasets/custom_images")  # pictures of the extraction tools
    add_default(cfg.INPUT, "TEXT_TOKENIZER", "openai_bpe")  # others are refused
    add_default(cfg.DATASETS, "FACTORY_TRAIN", ())  # reader of each entry of DATASETS.TRAIN
    add_default(cfg.DATASETS, "PATH_TRAIN", ())  # files or folders of each entry, joined by "+"
    aug = add_node(cfg, "AUG")
    add_default(aug, "SCALE", (0.08, 1.0))  # random resized crop: share of the area
    add_default(aug, "RATIO", (3.0 / 4.0, 4.0 / 3.0))  # random resized crop: aspect
    add_default(aug, "INTERPOLATION", 3)  # PIL filter; 3 = bicubic
    add_default(aug, "USE_TIMM", False)  # refused: no published recipe uses it
    timm = add_node(aug, "TIMM_AUG")
    add_default(timm, "USE_LOADER", False)  # refused
    add_default(timm, "USE_TRANSFORM", False)  # refused
    train = add_node(aug, "TRAIN")
    # [short side], or [height, width] of a random resized crop
    add_default(train, "IMAGE_SIZE", [224, 224])
    add_default(train, "MAX_SIZE", None)  # longest side, pixels
