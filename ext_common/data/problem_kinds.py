"""Everything that can be wrong with a dataset, in the order in which it is reported.

The loaders refuse the errors; ``tools/prepare_data.py check`` lists errors and warnings.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of problem.

    Args:
        key: short name, for tables.
        what: what messages say after the number of cases. Kinds that share it are one message.
        fix: what the user can do.
        severity: "error" (nothing can be trained with it) or "warning" (handled as documented).
    """

    key: str
    what: str
    fix: str = ""
    severity: str = "error"


NO_NUMBER = Kind(
    "no-number",
    "values NaN or Infinity, which JSON does not have",
    "write the file again without them",
)
CLASS_ORDER = Kind(
    "class-order",
    "datasets with other classes or another order of classes",
    "give the files the same categories with the same ids",
)
CLASS_NUMBER = Kind(
    "class-number", "datasets with a part of the other's classes only", "", "warning"
)

IMAGE_ENTRY = Kind("image-entry", "entries of 'images' that are not objects, at")
IMAGE_WITHOUT_ID = Kind("image-without-id", "images without an 'id', at")
IMAGE_IDS_MIXED = Kind("image-ids-mixed", "image ids are partly numbers and partly text")
IMAGE_ID_TWICE = Kind("image-id-twice", "image ids given twice")
IMAGE_WITHOUT_SIZE = Kind(
    "image-without-size", "images without a positive integer 'height' and 'width'"
)
LABEL_UNKNOWN = Kind("label-unknown", "images with a label that is not in 'categories'")
LABEL_TWICE = Kind("label-twice", "images with a label given twice in 'pos_category_ids'")
LABEL_TYPE = Kind("label-type", "images whose labels are not a list of category ids")
LABEL_MISSING = Kind(
    "label-missing",
    "images without a label in 'pos_category_ids'",
    "an image-label dataset needs at least one per image",
)
CAPTION_TYPE = Kind("caption-type", "images whose 'captions' is not a list of texts")
CAPTION_EMPTY = Kind("caption-empty", "images with an empty caption")
CAPTION_LONG = Kind(
    "caption-long", "images with a caption of more than 75 words, cut when encoded", "", "warning"
)
CAPTION_MISSING = Kind("caption-missing", "annotations without a text in 'caption'")
CAPTION_BLANK = Kind("caption-blank", "annotations with an empty caption")
CAPTION_CUT = Kind("caption-cut", "captions of more than 75 words, cut when encoded", "", "warning")
IMAGE_WITHOUT_NAME = Kind(
    "image-without-name", "images without 'file_name', 'coco_url' or 'tar_index'"
)
NAME_LEAVES_ROOT = Kind(
    "name-leaves-root",
    "images whose name leaves the image root",
    "name files relative to the image folder, without '..'",
)
NAME_TWICE = Kind("name-twice", "file names that several images have", "", "warning")

ANNOTATION_ENTRY = Kind("annotation-entry", "entries of 'annotations' that are not objects, at")
ANNOTATION_ID_TWICE = Kind("annotation-id-twice", "annotation ids given twice")
ANNOTATION_WITHOUT_IMAGE = Kind(
    "annotation-no-image", "annotations of images that are not in 'images'"
)
CATEGORY_UNKNOWN = Kind(
    "category-unknown", "annotations with a category that is not in 'categories'"
)
BOX_TYPE = Kind("box-type", "annotations whose 'bbox' is not four numbers")
_BAD_BOX = ("annotations with a bad box", "repair them, or set bad_boxes: drop or clip")
BOX_NOT_FINITE = Kind("box-not-finite", *_BAD_BOX)
BOX_EMPTY = Kind("box-empty", *_BAD_BOX)
BOX_OUTSIDE = Kind("box-outside", *_BAD_BOX)
BAD_BOXES = (BOX_NOT_FINITE, BOX_EMPTY, BOX_OUTSIDE)
BOX_OVER_EDGE = Kind(
    "box-over-edge", "annotations with a box that is partly outside its image", "", "warning"
)
POLYGON_TYPE = Kind("polygon-type", "annotations whose polygons are not lists of x, y pairs")
POLYGON_SHORT = Kind(
    "polygon-short", "annotations have polygons of fewer than three points", "", "warning"
)
IMAGE_WITHOUT_ANNOTATIONS = Kind(
    "image-empty", "images without annotations, labels and captions", "", "warning"
)

LINK_LEAVES_ROOT = Kind(
    "link-leaves-root",
    "images are links that leave the image root",
    "copy the images, or set allow_links: true where you trust the links",
)
FILE_MISSING = Kind("file-missing", "images whose file is missing", "copy or download them again")
FILE_UNREADABLE = Kind("file-unreadable", "image files that cannot be read")
FILE_SIZE = Kind(
    "file-size",
    "images whose file is not of the recorded size",
    "replace the file, or correct width and height; INPUT.TRUST_FILES goes by the file",
)

PAIR_UNREADABLE = Kind("pair-unreadable", "image-text pairs whose image or captions cannot be read")

PROPOSALS_MISSING = Kind(
    "proposals-missing",
    "images without an entry in the proposals file",
    "make the proposals again for this folder",
)
PROPOSALS_WITHOUT_IMAGE = Kind(
    "proposals-no-image",
    "entries of the proposals file that name no image",
    "names are relative to the image folder; the file may belong to another one",
)
PROPOSALS_AMBIGUOUS = Kind(
    "proposals-ambiguous",
    "entries named by a file name that several images have",
    "name images by their path relative to the image folder",
)
PROPOSAL_BOX = Kind("proposal-box", "proposals that are no box XYXY inside their image")
PROPOSALS_EMPTY = Kind("proposals-empty", "images with an empty list of proposals", "", "warning")

KINDS = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
"""All kinds, in order."""
