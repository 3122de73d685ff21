"""The complete small models of the golden set: configuration, weights and batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor, nn

import detic_ext  # noqa: F401 - registers the model parts
from detic_ext.losses.dynamic_classes import ClassSubset
from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from tests.golden_cases import golden_arrays, golden_root

CONFIGS = Path(__file__).parents[2] / "configs" / "detic"


class FixedTextEncoder(nn.Module):
    """Stands for CLIP: image i's caption has row i of the stored features."""

    def __init__(self, features: np.ndarray) -> None:
        super().__init__()
        self.features = torch.from_numpy(features)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return self.features[[int(caption) for caption in captions]]


class E2ECase:
    """One model file and its recordings.

    Args:
        name: ``e2e_c2`` or ``e2e_c4``.
        folder: for the files that the configuration names.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.arrays = golden_arrays("detic", f"{name}.npz")
        self.images = sum(
            1 for key in self.arrays if key.startswith("image_") and key[6:].isdigit()
        )

    def config(self, *opts: Any) -> CfgNode:
        """The published base, the stored overrides, and ``opts`` (KEY, VALUE, ...)."""
        classifier, frequencies = self.folder / "zs_file.npy", self.folder / "cat_info.json"
        np.save(classifier, self.arrays["zs_file"])
        counts = enumerate(self.arrays["image_count"].tolist(), start=1)
        frequencies.write_text(json.dumps([{"id": i, "image_count": n} for i, n in counts]))
        settings: dict[str, Any] = json.loads(str(self.arrays["config_overrides_json"]))
        settings["MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH"] = classifier
        settings["MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH"] = frequencies
        settings.update(zip(opts[0::2], opts[1::2], strict=True))
        base = CONFIGS / str(self.arrays["config_base"])
        return load_config(base, [str(word) for pair in settings.items() for word in pair])

    def model(self, *opts: Any) -> nn.Module:
        """The model with the authors' weights, which must cover it."""
        model = build_model(self.config(*opts))
        report = load_model_weights(model, golden_root() / "detic" / f"{self.name}_model.pth")
        assert report.complete
        assert not report.permitted
        return model

    def training_model(self, tag: str) -> nn.Module:
        """The model as the recording of a loss tag was made."""
        if tag.startswith("dyn_"):
            model = self.model(
                "MODEL.DYNAMIC_CLASSIFIER", True, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False
            )
            subset = ClassSubset.of(
                self.arrays[f"{tag}_inds"].tolist(), model.roi_heads.num_classes
            )
            model.class_sampler = lambda supervision, batch: subset
        elif tag.startswith("caption"):
            features = self.arrays["caption_features"]
            model = self.model(
                "MODEL.WITH_CAPTION", True,
                "MODEL.TEXT_ENCODER.NAME", "hash",
                "MODEL.TEXT_ENCODER.DIM", features.shape[1],
                "MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", True,
            )  # fmt: skip
            model.text_encoder = FixedTextEncoder(features)
        elif tag.startswith("image_"):
            loss = tag.removeprefix("image_")
            opts: list[Any] = ["MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS", loss]
            if loss == "image":
                opts += ["MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", True]
            model = self.model(*opts)
        else:
            model = self.model()
        return model.train()

    def test_batch(self) -> list[dict[str, Any]]:
        """The pictures with the sizes that detections are wanted for."""
        batch = []
        for i in range(self.images):
            height, width = self.arrays["output_sizes"][i].tolist()
            image = torch.from_numpy(self.arrays[f"image_{i}"])
            batch.append({"image": image, "height": height, "width": width})
        return batch

    def train_batch(self, tag: str) -> list[dict[str, Any]]:
        """The pictures with the annotations of a loss tag."""
        kind = tag.removeprefix("dyn_").split("_")[0]
        batch = []
        for i, item in enumerate(self.test_batch()):
            item["ann_type"] = kind
            item["dataset_source"] = 0
            if kind in ("box", "prop"):
                item["instances"] = self._ground_truth(i)
            else:
                item["pos_category_ids"] = self.arrays[f"pos_category_ids_{i}"].tolist()
                item["captions"] = [str(i)]
            batch.append(item)
        return batch

    def _ground_truth(self, index: int) -> Instances:
        boxes = self.arrays[f"gt_boxes_{index}"]
        instances = Instances(tuple(self.arrays[f"image_{index}"].shape[1:]))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.from_numpy(self.arrays[f"gt_classes_{index}"])
        diamonds = []
        for x1, y1, x2, y2 in boxes.astype(np.float64):
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            diamonds.append([np.array([cx, y1, x2, cy, cx, y2, x1, cy])])
        instances.gt_masks = PolygonMasks(diamonds)
        return instances
