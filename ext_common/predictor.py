"""Detection on pictures: a model, its test-time resizing, a vocabulary, and batches.

    predictor = Predictor(cfg, vocabulary=Vocabulary.parse("cat, remote control"))
    for detections in predictor(["a.jpg", "b.jpg"], threshold=0.5, batch_size=2):
        print(detections.file_name, detections.names, detections.boxes_R4)

A predictor never changes its model: a vocabulary becomes a classifier tensor that goes along with
every call. Predictors of different vocabularies share one model, also from several threads.

Shapes: H, W = rows and columns of a picture; D = width of text embeddings; C = classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor, nn

from ext_common.checkpoint import load_model_weights
from ext_common.config import add_common_config
from ext_common.errors import ConfigError, ImageError, VocabularyError, WeightsError
from ext_common.images import Source, image_size, printable, read_image
from ext_common.modeling.build import build_model
from ext_common.results import Detections
from ext_common.text_encoder import embed_vocabulary, text_encoder_from_config
from ext_common.transforms import build_augmentations
from ext_common.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# a picture thinner than this is stretched before it is resized: shortest-edge resizing with a
# limit on the longest would leave it no pixel
_MAX_ASPECT = 50

Picture = Source | NDArray[np.uint8]


class Predictor:
    """Runs a detector on files or arrays.

    Args:
        cfg: a configuration; detectron2's own, without our keys, will do. It is copied.
        vocabulary: the classes to look for instead of the model's own. Names without embeddings
            are encoded with ``cfg.MODEL.TEXT_ENCODER``. Models without ``prepare_vocabulary``
            (plain detectron2) have a fixed list of classes and take none.
        model: used as it is, nothing is loaded; None builds the model of ``cfg`` and loads
            ``cfg.MODEL.WEIGHTS``.
        device: where the model runs ("cpu", "cuda:1"); None is ``cfg.MODEL.DEVICE``, or where a
            given ``model`` is.

    Raises:
        VocabularyError: a vocabulary that the model cannot take, or no names for its classes.
        WeightsError: weights that cannot be read or do not fit.
        ConfigError: a device that is not there, or a model that cannot be built.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        vocabulary: Vocabulary | None = None,
        model: nn.Module | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        add_common_config(cfg)
        if device is not None:
            cfg.MODEL.DEVICE = str(device)
        if model is None or device is not None:
            _check_device(cfg.MODEL.DEVICE)
        self.cfg = cfg
        self._augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))
        recorded: Sequence[str] = ()
        if model is None:
            model, recorded = _load_model(cfg)
        elif device is not None:
            model = model.to(device)
        self.model = model.eval()
        self._classifier: Tensor | None = None
        if vocabulary is None:
            self.class_names = _own_class_names(model, cfg, recorded)
        else:
            self._set_vocabulary(vocabulary)

    def with_vocabulary(self, vocabulary: Vocabulary) -> Predictor:
        """A predictor of other classes that shares this one's model; this one stays as it is."""
        other: Predictor = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._set_vocabulary(vocabulary)
        return other

    def _set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Only while a predictor is made."""
        prepare = getattr(self.model, "prepare_vocabulary", None)
        if prepare is None:
            raise VocabularyError(
                f"{type(self.model).__name__} has a fixed list of classes and takes no vocabulary",
                where="MODEL.META_ARCHITECTURE",
                fix="leave the vocabulary away, or use a model with a zero-shot classifier",
            )
        if vocabulary.embeddings_CD is None:
            node = self.cfg.MODEL.TEXT_ENCODER
            encoder = text_encoder_from_config(self.cfg)
            vocabulary = embed_vocabulary(vocabulary, encoder, node.TEMPLATES, node.CACHE_DIR)
        with torch.no_grad():
            self._classifier = prepare(vocabulary)
        self.class_names = vocabulary.names

    def __call__(
        self,
        pictures: Sequence[Picture],
        *,
        threshold: float = 0.0,
        batch_size: int = 1,
        array_format: str = "BGR",
        file_names: Sequence[str] | None = None,
    ) -> list[Detections]:
        """Detect in any number of pictures.

        Pictures of like aspect share a batch, whatever their order, so that little is padded.
        Padding can change a score slightly; pictures of one size give what they give one by one.

        Args:
            pictures: paths, file contents, or uint8 arrays [H, W, 3] in ``array_format``.
            threshold: lowest score that is reported, 0..1. The model's own limit
                (``SCORE_THRESH_TEST``) holds as well.
            batch_size: pictures per forward pass.
            array_format: channel order of the arrays, "BGR" (as detectron2 reads) or "RGB".
            file_names: what the results call the pictures; the paths where None.

        Returns:
            One result per picture, in the order of ``pictures``; an empty one where nothing is
            found.

        Raises:
            ImageError: a picture that cannot be read, or an array of another shape or type.
        """
        if isinstance(pictures, str | bytes | Path | np.ndarray):
            raise ImageError("one picture where a list is expected", fix="give [picture]")
        if array_format not in ("BGR", "RGB") or batch_size < 1:
            raise ConfigError(
                f"array_format {array_format!r}, batch_size {batch_size}",
                fix="BGR or RGB; at least 1",
            )
        names = [_name(picture, index) for index, picture in enumerate(pictures)]
        if file_names is not None:
            names = list(file_names)
        sizes = [_size(picture, name) for picture, name in zip(pictures, names, strict=True)]
        results: list[Detections | None] = [None] * len(sizes)
        for batch in aspect_batches(sizes, batch_size):
            arrays = [self._array(pictures[index], array_format) for index in batch]
            for index, instances in zip(batch, self._detect(arrays), strict=True):
                found = Detections.from_instances(instances, self.class_names, names[index])
                results[index] = found.filter(threshold)
        return [result for result in results if result is not None]

    def _array(self, picture: Picture, array_format: str) -> NDArray[np.uint8]:
        """Pixels in the channel order of the model."""
        if not isinstance(picture, np.ndarray):
            limit = self.cfg.INPUT.MAX_PIXELS
            return read_image(picture, format=self.cfg.INPUT.FORMAT, max_pixels=limit)
        return picture if array_format == self.cfg.INPUT.FORMAT else picture[:, :, ::-1]

    def _detect(self, arrays: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """One detectron2 Instances per picture, at the pictures' sizes."""
        inputs = []
        for array in arrays:
            view = T.AugInput(_stretched(array))
            self._augmentations(view)
            # a copy: resizing may hand out a view with reversed channels
            image_CHW = torch.from_numpy(np.array(view.image.transpose(2, 0, 1), order="C"))
            inputs.append({"image": image_CHW, "height": array.shape[0], "width": array.shape[1]})
        if self.model.training:  # a trainer that shares the model may have left it so
            self.model.eval()
        with torch.no_grad():
            if self._classifier is None:
                outputs = self.model(inputs)
            else:
                outputs = self.model(inputs, classifier=self._classifier)
        if any("instances" not in output for output in outputs):
            raise ConfigError(
                f"{type(self.model).__name__} gives {', '.join(outputs[0])} instead of instances",
                where="MODEL.META_ARCHITECTURE",
                fix="use a detector",
            )
        return [output["instances"] for output in outputs]


def aspect_batches(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Indices of pictures in batches of like aspect (height / width).

    Args:
        sizes: (height, width) of each picture.
        batch_size: most pictures in a batch.
    """
    order = sorted(range(len(sizes)), key=lambda index: sizes[index][0] / sizes[index][1])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(
            f"no such device {device!r}", where="MODEL.DEVICE", fix="cpu, cuda or cuda:N"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r}, but torch sees no GPU", where="MODEL.DEVICE", fix="use cpu"
        )


def _load_model(cfg: CfgNode) -> tuple[nn.Module, Sequence[str]]:
    """The model of a configuration with its weights, and the class names stored with them."""
    model: nn.Module = build_model(cfg)
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: the model detects with what it was built with")
        return model, ()
    report = load_model_weights(model, cfg.MODEL.WEIGHTS)
    if report.backbone is not None:
        raise WeightsError(
            "holds a backbone only; the rest of the detector would be random",
            where=cfg.MODEL.WEIGHTS,
            fix="give the weights of a trained detector",
        )
    recorded = report.vocabulary
    return model, () if recorded is None else Vocabulary.from_state_dict(recorded).names


def _own_class_names(model: nn.Module, cfg: CfgNode, recorded: Sequence[str]) -> tuple[str, ...]:
    """Names of a model's classes: of its vocabulary, its checkpoint, or its test dataset.

    Names whose number is not the model's are not its names: better none than wrong ones.
    """
    vocabulary: Vocabulary | None = getattr(model, "vocabulary", None)
    if vocabulary is not None:
        return vocabulary.names
    source, names = "the checkpoint", recorded
    if not names and len(cfg.DATASETS.TEST) and cfg.DATASETS.TEST[0] in DatasetCatalog:
        source = f"dataset {cfg.DATASETS.TEST[0]!r}"
        names = getattr(MetadataCatalog.get(cfg.DATASETS.TEST[0]), "thing_classes", ())
    if not names:
        raise VocabularyError(
            "the model's classes have no names",
            fix="give a vocabulary, or name a registered dataset in DATASETS.TEST",
        )
    count = getattr(getattr(model, "roi_heads", model), "num_classes", len(names))
    if count != len(names):
        raise VocabularyError(
            f"the model has {count} classes, {source} has {len(names)} names",
            where="DATASETS.TEST",
            fix="name the dataset that the model was trained for, or give a vocabulary",
        )
    return tuple(names)


def _name(picture: Picture, index: int) -> str:
    if isinstance(picture, np.ndarray | bytes):
        return f"picture {index}"
    return str(picture)


def _size(picture: Picture, name: str) -> tuple[int, int]:
    """(height, width), with arrays checked."""
    if not isinstance(picture, np.ndarray):
        return image_size(picture, name=name)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ImageError(
            f"array of type {picture.dtype} and shape {picture.shape}",
            where=printable(name),
            fix="uint8 of shape [height, width, 3]",
        )
    return picture.shape[0], picture.shape[1]


def _stretched(array_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture, its short side repeated where it is extremely thin.

    Boxes come back at the picture's own size all the same: detectron2 scales them from the size
    of the input to that of the picture, each side by itself.
    """
    height, width = array_HW3.shape[:2]
    times_y = -(-width // (height * _MAX_ASPECT))
    times_x = -(-height // (width * _MAX_ASPECT))
    if times_y == times_x == 1:
        return array_HW3
    return array_HW3.repeat(times_y, axis=0).repeat(times_x, axis=1)
