"""CLIP's ResNet and region features: golden values, and open_clip's ModifiedResNet as an oracle."""

from __future__ import annotations

import open_clip
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from open_clip.modified_resnet import ModifiedResNet

from regionclip_ext.modeling.clip_resnet import ClipResNet
from regionclip_ext.modeling.encoder_shapes import SHAPES, ClipResNetShape
from tests.golden_cases import golden_arrays
from tests.regionclip_ext.golden_models import encoder_keys, stored_weights

TINY = ClipResNetShape((1, 2, 1, 1), 4, 2, 12, 64)


def _shape(weights: dict[str, torch.Tensor], prefix: str) -> ClipResNetShape:
    keys = encoder_keys(weights, prefix)
    one, two, three, four = keys["LAYERS"]
    return ClipResNetShape(
        (one, two, three, four), keys["WIDTH"], keys["HEADS"], keys["EMBED_DIM"], keys["RESOLUTION"]
    )


@pytest.mark.golden
def test_golden_region_features() -> None:
    arrays = golden_arrays("regionclip", "roi_features.npz")
    weights = stored_weights(arrays)
    backbone = ClipResNet(_shape(weights, ""))
    backbone.load_state_dict(weights)
    boxes = [Boxes(torch.from_numpy(arrays[k])) for k in sorted(arrays) if k.startswith("boxes")]
    side = int(arrays["pooler_resolution"])
    pooler = ROIPooler(side, (1 / 16,), 0, "ROIAlignV2")
    with torch.no_grad():
        res4 = backbone(torch.from_numpy(arrays["image"]))["res4"]
        pooled = pooler([res4], boxes)
        res5 = backbone.last_stage(pooled)
        assert backbone.attnpool is not None
        embeddings = backbone.attnpool(res5)
    for name, ours in {
        "res4": res4,
        "pooled": pooled,
        "res5": res5,
        "region_feats": embeddings,
        "region_feats_meanpool": res5.mean(dim=(2, 3)),
    }.items():
        torch.testing.assert_close(ours, torch.from_numpy(arrays[name]), atol=1e-5, rtol=0)


def test_the_whole_tower_equals_open_clips() -> None:
    torch.manual_seed(0)
    oracle = ModifiedResNet(
        list(TINY.layers), TINY.embed_dim, TINY.heads, TINY.resolution, TINY.width
    )
    for name, value in oracle.state_dict().items():
        if "running" in name or "bn" in name and "num" not in name:
            value.uniform_(0.5, 1.5)
    state = {k: v for k, v in oracle.state_dict().items() if "num_batches" not in k}
    ours = ClipResNet(TINY, out_features=("res2", "res5"))
    ours.load_state_dict(state)
    image = torch.randn(2, 3, TINY.resolution, TINY.resolution)
    with torch.no_grad():
        maps = ours(image)
        assert ours.attnpool is not None
        torch.testing.assert_close(ours.attnpool(maps["res5"]), oracle.eval()(image))
    assert {n: (s.channels, s.stride) for n, s in ours.output_shape().items()} == {
        n: (m.shape[1], TINY.resolution // m.shape[2]) for n, m in maps.items()
    }


@pytest.mark.parametrize("name", SHAPES)
def test_published_sizes_are_open_clips(name: str) -> None:
    config = open_clip.get_model_config(name)
    assert config is not None
    vision, shape = config["vision_cfg"], SHAPES[name]
    assert (shape.embed_dim, shape.text_width) == (config["embed_dim"], config["text_cfg"]["width"])
    assert (shape.resolution, shape.width) == (vision["image_size"], vision["width"])
    with torch.device("meta"):
        ours = ClipResNet(shape).state_dict()
        oracle = ModifiedResNet(
            vision["layers"], config["embed_dim"], shape.heads, shape.resolution, shape.width
        ).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in oracle.items() if "num_batches" not in name
    }


@pytest.mark.parametrize("stages", range(6))
def test_freezing_leaves_the_later_stages_and_the_pool(stages: int) -> None:
    model = ClipResNet(TINY, freeze_at=stages)
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    stem = {"conv1", "conv2", "conv3"} if stages < 1 else set()
    layers = {f"layer{i}" for i in range(1, 5) if stages < i + 1}
    assert trained == stem | layers | {"attnpool"}
