"""The complete small detectors of the golden set, built from configurations.

Every size is read off the stored weights or the case's ``meta_json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

import regionclip_ext  # noqa: F401 - registers the model parts
from ext_common.config import load_config, validate_config
from ext_common.modeling.build import build_model
from tests.golden_cases import golden_arrays, golden_root

CONFIGS = Path(__file__).parents[2] / "configs" / "regionclip"


def golden_names(prefix: str) -> list[str]:
    """Stems of the cases that begin so, at least one."""
    names = sorted(path.stem for path in (golden_root() / "regionclip").glob(f"{prefix}*.npz"))
    assert names, f"no {prefix}*.npz"
    return names


def golden_parts(name: str) -> dict[str, dict[str, Tensor]]:
    """Numeric arrays of a file with ``cN/`` cases: case -> name -> tensor; at least one case."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in golden_arrays("regionclip", name).items():
        case, _, field = key.partition("/")
        if value.dtype.kind != "U":
            parts.setdefault(case, {})[field] = torch.from_numpy(value)
    assert parts
    return parts


def stored_weights(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors of a case."""
    return {k.removeprefix("w/"): torch.as_tensor(v) for k, v in arrays.items() if k[:2] == "w/"}


def encoder_keys(weights: dict[str, Tensor], prefix: str = "backbone.") -> dict[str, Any]:
    """CUSTOM_ENCODER of a stored image encoder."""
    places = weights[f"{prefix}attnpool.positional_embedding"].shape[0] - 1
    layers = [
        len({n.split(".")[n.split(".").index(f"layer{i}") + 1] for n in weights
             if n.startswith(f"{prefix}layer{i}.")})
        for i in range(1, 5)
    ]  # fmt: skip
    width = weights[f"{prefix}conv3.weight"].shape[0]
    return {
        "WIDTH": width,
        "LAYERS": layers,
        "HEADS": width * 32 // 64,
        "EMBED_DIM": weights[f"{prefix}attnpool.c_proj.weight"].shape[0],
        "RESOLUTION": 32 * round(places**0.5),
    }


class GoldenDetector:
    """One file: configuration, weights and batch.

    Args:
        name: stem of the file.
        folder: for the files that the configuration names.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.arrays = golden_arrays("regionclip", f"{name}.npz")
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta_json"]))
        self.weights = stored_weights(self.arrays)
        if "test_text_emb" not in self.arrays:  # stored with the weights, unused in training
            self.weights.pop("roi_heads.box_predictor.test_cls_score.weight", None)
        self.folder = folder

    def tensor(self, name: str) -> Tensor:
        """A stored array."""
        return torch.from_numpy(self.arrays[name])

    def config(self, **clip: Any) -> CfgNode:
        """The published base with this case's sizes; ``clip`` overrides MODEL.CLIP."""
        meta, encoder = self.meta, encoder_keys(self.weights)
        train, test = self.folder / "train.pth", self.folder / "test.pth"
        torch.save(self.tensor("train_text_emb"), train)
        keys: dict[str, Any] = {f"MODEL.CLIP.CUSTOM_ENCODER.{k}": v for k, v in encoder.items()}
        keys |= {
            "MODEL.DEVICE": "cpu",
            "MODEL.CLIP.IMAGE_ENCODER": "custom",
            "MODEL.CLIP.TEXT_EMB_PATH": str(train),
            "MODEL.CLIP.TEXT_EMB_DIM": encoder["EMBED_DIM"],
            "MODEL.CLIP.CLSS_TEMP": meta["temp"],
            "MODEL.CLIP.CROP_REGION_TYPE": meta.get("region_type", "RPN"),
            "MODEL.CLIP.NO_BOX_DELTA": meta.get("no_box_delta", False),
            "MODEL.CLIP.MULTIPLY_RPN_SCORE": meta.get("multiply_rpn_score", False),
            "MODEL.CLIP.FOCAL_SCALED_LOSS": meta.get("focal_gamma"),
            "MODEL.CLIP.BG_CLS_LOSS_WEIGHT": meta.get("bg_weight"),
            "MODEL.ROI_HEADS.NUM_CLASSES": len(self.tensor("train_text_emb")),
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": meta.get("score_thresh", 0.05),
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": meta.get("nms_thresh", 0.5),
            "MODEL.ROI_HEADS.SOFT_NMS_ENABLED": meta.get("soft_nms", False),
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": meta.get("batch_size_per_image", 512),
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": meta.get("positive_fraction", 0.25),
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": encoder["RESOLUTION"] // 16,
            "TEST.DETECTIONS_PER_IMAGE": meta.get("topk", 100),
        }
        if "test_text_emb" in self.arrays:
            torch.save(self.tensor("test_text_emb"), test)
            keys["MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH"] = str(test)
        if meta.get("mask_conv_dim"):
            keys |= {
                "MODEL.MASK_ON": True,
                "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
                "MODEL.ROI_MASK_HEAD.CONV_DIM": meta["mask_conv_dim"],
                "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
                "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
            }
        keys |= self._offline()
        keys |= {f"MODEL.CLIP.{key}": value for key, value in clip.items()}
        words = [str(word) for pair in keys.items() for word in pair]
        return load_config(CONFIGS / "Base_C4.yaml", words)

    def model(self, **clip: Any) -> nn.Module:
        """The detector with the authors' weights, which must be exactly its own."""
        cfg = self.config(**clip)
        validate_config(cfg, training=False)
        model = build_model(cfg)
        model.load_state_dict(self.weights, strict=True)
        return model

    def batch(self, *, training: bool = False) -> list[dict[str, Any]]:
        """The picture, with boxes where they are needed."""
        image = self.tensor("image")
        height, width = (
            self.arrays["orig_hw"].tolist() if "orig_hw" in self.arrays else image.shape[1:]
        )
        item: dict[str, Any] = {"image": image, "height": height, "width": width}
        if "gt_boxes" in self.arrays:
            truth = Instances((image.shape[1], image.shape[2]))
            truth.gt_boxes = Boxes(self.tensor("gt_boxes"))
            if training:
                truth.gt_classes = self.tensor("gt_classes")
            item["instances"] = truth
        return [item]

    def _offline(self) -> dict[str, Any]:
        """The frozen branch as a file of its own."""
        if "offline_backbone.stem.conv1.weight" not in self.weights:
            return {}
        meta, weights = self.meta, self.weights
        bottleneck = weights["offline_backbone.res2.0.conv1.weight"].shape[0]
        channels = weights["offline_backbone.res2.0.conv3.weight"].shape[0]
        stem = weights["offline_backbone.stem.conv1.weight"].shape[0]
        path = self.folder / "offline.yaml"
        path.write_text(
            f"MODEL:\n  DEVICE: cpu\n"
            f"  RESNETS: {{STEM_OUT_CHANNELS: {stem}, RES2_OUT_CHANNELS: {channels}, "
            f"WIDTH_PER_GROUP: {bottleneck}}}\n"
            f"  ANCHOR_GENERATOR: {{SIZES: [{meta.get('offline_anchor_sizes', [32, 64, 128, 256, 512])}]}}\n"
            f"  RPN: {{PRE_NMS_TOPK_TEST: {meta.get('rpn_pre_topk', 300)}}}\nVERSION: 2\n"
        )
        return {
            "MODEL.CLIP.OFFLINE_RPN_CONFIG": str(path),
            "MODEL.CLIP.OFFLINE_RPN_NMS_THRESH": meta.get("rpn_nms_thresh", 0.7),
            "MODEL.CLIP.OFFLINE_RPN_POST_NMS_TOPK_TEST": meta.get(
                "rpn_post_topk", len(self.arrays["proposal_boxes"])
            ),
        }
