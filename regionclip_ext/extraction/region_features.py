"""Region features of pictures (specification 6, extract region features).

Legend: N regions of an image, D joint embedding, K classes and the background last.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ext_common.atomic_file import write_bytes
from ext_common.errors import ConfigError
from ext_common.images import printable
from ext_common.weights_io import save_tensors_atomic
from regionclip_ext.modeling.meta_arch import CLIPFastRCNN

FORMATS = (".pth", ".npz")


@dataclass(frozen=True)
class RegionFeatures:
    """What is kept of an image; all fields have the same regions in the same order.

    Args:
        boxes_N4: XYXY, pixels of the original image.
        feats_ND: un-normalised.
        classes_N: int64; None without a classifier.
        probs_NK: class probabilities before any fusion with objectness; None without a classifier.
    """

    boxes_N4: Tensor
    feats_ND: Tensor
    classes_N: Tensor | None = None
    probs_NK: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Under the published names: ``boxes``, ``feats`` and, classified, ``classes``, ``probs``."""
        found = {"boxes": self.boxes_N4, "feats": self.feats_ND}
        if self.classes_N is not None and self.probs_NK is not None:
            found |= {"classes": self.classes_N, "probs": self.probs_NK}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def save(self, path: Path) -> None:
        """Write a ``.pth`` (dict of tensors, as published) or ``.npz`` file, whole or not at all.

        Raises:
            ConfigError: another ending.
        """
        if path.suffix == ".pth":
            save_tensors_atomic({name: t.clone() for name, t in self.tensors().items()}, path)
        elif path.suffix == ".npz":
            stream = io.BytesIO()
            arrays: dict[str, Any] = {name: t.numpy() for name, t in self.tensors().items()}
            np.savez(stream, **arrays)
            write_bytes(path, stream.getvalue())
        else:
            raise ConfigError(
                f"cannot write {path.suffix!r}", where=printable(path), fix=f"one of {FORMATS}"
            )


@torch.no_grad()
def region_features(
    model: CLIPFastRCNN,
    batched_inputs: Sequence[dict[str, Any]],
    *,
    classify: bool,
    classifier: Tensor | None = None,
) -> list[RegionFeatures]:
    """Features of a batch's regions.

    Args:
        model: detector in evaluation mode.
        batched_inputs: ``image``, and ``height`` and ``width`` of the original.
        classify: keep the regions that become detections, with classes and probabilities;
            otherwise all regions that are proposed.
        classifier: class embeddings [C, D] from ``model.prepare_vocabulary``, for ``classify``.
    """
    proposals, embeddings = model.region_embeddings(batched_inputs)
    found = []
    for item, image, feats_ND in zip(batched_inputs, proposals, embeddings, strict=True):
        if classify:
            features = _classified(model, image, feats_ND, classifier)
        else:
            features = RegionFeatures(image.proposal_boxes.tensor, feats_ND)
        found.append(_at_original_size(features, image, item))
    return found


def _classified(
    model: CLIPFastRCNN, image: Instances, feats_ND: Tensor, classifier: Tensor | None
) -> RegionFeatures:
    predictor = model.roi_heads.box_predictor
    given = () if classifier is None else (classifier,)
    predictions = predictor(feats_ND, *given)
    (detected,), (rows,) = predictor.inference(predictions, [image])
    return RegionFeatures(
        detected.pred_boxes.tensor,
        feats_ND[rows],
        detected.pred_classes,
        predictions[0].softmax(dim=1)[rows],
    )


def _at_original_size(
    features: RegionFeatures, image: Instances, item: dict[str, Any]
) -> RegionFeatures:
    """Scale the boxes and drop those that are empty then, of all fields alike (pitfall 18)."""
    height, width = image.image_size
    boxes = Boxes(features.boxes_N4.clone())
    boxes.scale(item["width"] / width, item["height"] / height)
    boxes.clip((item["height"], item["width"]))
    kept = boxes.nonempty()
    return RegionFeatures(
        boxes.tensor[kept],
        features.feats_ND[kept],
        None if features.classes_N is None else features.classes_N[kept],
        None if features.probs_NK is None else features.probs_NK[kept],
    )
