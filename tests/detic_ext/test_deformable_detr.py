"""The Deformable-DETR variant as a model: batches, inference, configurations, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import pairwise_iou
from torch import Tensor, nn

from detic_ext.modeling.deformable_detr.config_checks import check_deformable_detr
from detic_ext.modeling.deformable_detr.inference import top_detections
from detic_ext.modeling.deformable_detr.meta_arch import DeformableDetr
from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.errors import ConfigError, DatasetError
from ext_common.solver import build_optimizer
from tests.detic_ext.tiny_model import box_item, label_item

CONFIGS = Path(__file__).parents[2] / "configs" / "detic"
RECIPES = (
    "BoxSup-DeformDETR_L_R50_2x",
    "BoxSup-DeformDETR_L_R50_4x",
    "Detic_DeformDETR_LI_R50_4x_ft4x",
)
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "''",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.DETR.HIDDEN_DIM": 64,
    "MODEL.DETR.NHEADS": 4,
    "MODEL.DETR.DIM_FEEDFORWARD": 64,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 2,
    "MODEL.DETR.DROPOUT": 0.0,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 12,
    "MODEL.DETR.NUM_CLASSES": 5,
    "MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH": "frequencies.json",
    "TEST.DETECTIONS_PER_IMAGE": 10,
}


def tiny_config(recipe: str = RECIPES[2], **changes: Any) -> CfgNode:
    pairs = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    words = [str(word) for pair in pairs.items() for word in pair]
    return load_config(CONFIGS / f"{recipe}.yaml", words)


@pytest.fixture
def frequencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = ", ".join(f'{{"id": {i}, "image_count": {i}}}' for i in range(1, 6))
    Path("frequencies.json").write_text(f"[{records}]", encoding="utf-8")


pytestmark = pytest.mark.usefixtures("frequencies")


def tiny_model(recipe: str = RECIPES[2], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = build_model(tiny_config(recipe, **changes))
    return model


def losses_of(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    result: dict[str, Tensor] = model(batch)
    return result


# --- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [True, False])
def test_every_kind_of_batch_has_the_same_losses_and_gradients(deep: bool) -> None:
    model = tiny_model(MODEL__DETR__DEEP_SUPERVISION=deep).train()
    boxes = losses_of(model, [box_item(), box_item(boxes=[], classes=[])])
    labels = losses_of(model, [label_item([1, 3]), label_item([])])
    tags = losses_of(model, [label_item([2]) | {"ann_type": "captiontag"}])
    parts = ("", "_0", "_enc") if deep else ("", "_enc")
    names = {f"loss_{kind}{part}" for kind in ("ce", "bbox", "giou") for part in parts}
    assert set(boxes) == set(labels) == set(tags) == names | {"loss_image"}
    assert list(boxes) == list(labels) == list(tags)
    assert all(value.shape == () and bool(value.isfinite()) for value in boxes.values())
    assert float(boxes["loss_image"].detach()) == 0
    assert float(labels["loss_image"].detach()) > 0
    assert float(tags["loss_image"].detach()) > 0
    assert float(labels["loss_ce"].detach()) > 0
    assert all(float(v.detach()) == 0 for k, v in labels.items() if "bbox" in k or "giou" in k)
    trained = {}
    for kind, losses in (("boxes", boxes), ("labels", labels)):
        model.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        trained[kind] = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained["boxes"] == trained["labels"]
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if deep:
        assert trained["boxes"] == wanted


def test_models_without_image_labels_have_no_image_loss() -> None:
    model = tiny_model(RECIPES[1]).train()
    assert "loss_image" not in losses_of(model, [box_item()])


def test_image_loss_is_weighted() -> None:
    batch = [label_item([1])]
    one = losses_of(tiny_model(MODEL__DETR__WEAK_WEIGHT=1.0).train(), batch)["loss_image"]
    tenth = losses_of(tiny_model().train(), batch)["loss_image"]
    assert torch.allclose(tenth * 10, one, rtol=1e-4)


def test_two_pictures_are_learned_in_a_few_steps() -> None:
    model = tiny_model(RECIPES[1], MODEL__BACKBONE__FREEZE_AT=5).train()
    batch = [
        box_item(boxes=[(6, 8, 30, 40)], classes=[3]),
        box_item(boxes=[(20, 30, 60, 60)], classes=[1]),
    ]
    for number, item in enumerate(batch):
        x1, y1, x2, y2 = item["instances"].gt_boxes.tensor[0].int().tolist()
        item["image"] = torch.full((3, 64, 64), 30, dtype=torch.uint8)
        item["image"][number, y1:y2, x1:x2] = 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(40):
        total = sum(losses_of(model, batch).values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.4 * history[0]
    model.eval()
    with torch.no_grad():
        found = model(batch)
    for item, result in zip(batch, found, strict=True):
        best, wanted = result["instances"][:1], item["instances"]
        assert best.pred_classes.tolist() == wanted.gt_classes.tolist()
        assert float(pairwise_iou(best.pred_boxes, wanted.gt_boxes)) > 0.6


def test_image_labels_move_scores_towards_the_label() -> None:
    model = tiny_model(MODEL__DETR__WEAK_WEIGHT=1.0, MODEL__BACKBONE__FREEZE_AT=5).train()
    batch = [label_item([2])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(8):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(float(losses["loss_image"].detach()))
    assert history[-1] < 0.8 * history[0]


def test_half_precision_steps_give_close_finite_losses() -> None:
    # learned queries: rounding would choose other proposals of equal boxes in the first stage
    model = tiny_model(
        RECIPES[1], MODEL__DETR__TWO_STAGE=False, MODEL__DETR__USE_FED_LOSS=False
    ).train()
    exact = losses_of(model, [box_item()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses_of(model, [box_item()])
    for name, value in half.items():
        assert value.dtype == torch.float32, name
        assert torch.allclose(value, exact[name], rtol=0.1, atol=0.05), name


def test_bad_annotations_are_named() -> None:
    model = tiny_model().train()
    item = box_item()
    item["image_id"] = 17
    item["instances"].gt_boxes.tensor[0, 2] = float("inf")
    with pytest.raises(DatasetError, match="image 17.*inf"):
        losses_of(model, [item])
    item["instances"].gt_boxes.tensor[0] = torch.tensor([9.0, 9.0, 4.0, 12.0])
    with pytest.raises(DatasetError, match="no area"):
        losses_of(model, [item])
    item = box_item(classes=[5])
    with pytest.raises(DatasetError, match="NUM_CLASSES"):
        losses_of(model, [item])


def test_weights_that_are_not_finite_give_such_losses_and_no_detections() -> None:
    model = tiny_model().train()
    with torch.no_grad():
        model.detr.bbox_embed[-2].layers[-1].bias[0] = torch.nan
    losses = losses_of(model, [box_item()])
    assert not bool(losses["loss_bbox"].isfinite())
    with torch.no_grad():
        model.detr.class_embed[-2].weight.fill_(torch.inf)
        (result,) = model.eval()([label_item([0])])
    assert len(result["instances"]) == 0


# --- inference -----------------------------------------------------------------------------------------


def test_detections_are_the_best_pairs_scaled_to_the_picture() -> None:
    logits, boxes = torch.randn(2, 4, 3), torch.rand(2, 4, 4) * 0.3 + 0.2
    results = top_detections(logits, boxes, [(10, 20), (30, 40)], limit=5)
    for image, (height, width) in enumerate([(10, 20), (30, 40)]):
        pairs = [(float(logits[image, q, c].sigmoid()), q, c) for q in range(4) for c in range(3)]
        best = sorted(pairs, reverse=True)[:5]
        found = results[image]
        assert found.image_size == (height, width)
        assert found.pred_classes.tolist() == [c for _, _, c in best]
        assert torch.allclose(found.scores, torch.tensor([score for score, _, _ in best]))
        for row, (_, q, _) in zip(found.pred_boxes.tensor, best, strict=True):
            x, y, w, h = boxes[image, q].tolist()
            wanted = [(x - w / 2) * width, (y - h / 2) * height,
                      (x + w / 2) * width, (y + h / 2) * height]  # fmt: skip
            assert torch.allclose(row, torch.tensor(wanted), atol=1e-5)
    assert len(top_detections(logits, boxes, [(10, 20), (30, 40)], limit=300)[0]) == 12


def test_boxes_come_at_the_size_that_is_asked_for() -> None:
    model = tiny_model().eval()
    item = label_item([0])
    with torch.no_grad():
        small = model([item])[0]["instances"]
        large = model([item | {"height": 128, "width": 192}])[0]["instances"]
    assert large.image_size == (128, 192)
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    assert torch.allclose(large.pred_boxes.tensor, small.pred_boxes.tensor * scale, atol=1e-3)


def test_pictures_may_come_in_any_order_and_of_any_size() -> None:
    model = tiny_model().eval()
    items = [label_item([0], size=size) for size in (64, 40, 9)]
    with torch.no_grad():
        plain = [result["instances"] for result in model(items)]
        moved = [result["instances"] for result in model(items[::-1])]
    for one, other in zip(plain, moved[::-1], strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-5)
        assert bool(one.pred_boxes.tensor.isfinite().all())


def test_a_picture_with_fewer_cells_than_queries() -> None:
    model = tiny_model(MODEL__DETR__NUM_OBJECT_QUERIES=300)
    item = box_item(size=16, boxes=[(2, 2, 12, 12)])
    losses = losses_of(model.train(), [item])
    assert all(bool(value.isfinite()) for value in losses.values())
    with torch.no_grad():
        (result,) = model.eval()([item])
    assert len(result["instances"]) > 0


# --- configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_build_the_published_model(recipe: str) -> None:
    cfg = load_config(CONFIGS / f"{recipe}.yaml", ["MODEL.DEVICE", "meta"])
    check_deformable_detr(cfg, training=True)
    with torch.device("meta"):
        model = build_model(cfg)
    assert isinstance(model, DeformableDetr)
    names = dict(model.named_parameters(remove_duplicate=False))
    shapes = {
        "detr.backbone.0.backbone.res5.2.conv3.weight": (2048, 512, 1, 1),
        "detr.input_proj.0.0.weight": (256, 512, 1, 1),
        "detr.input_proj.3.0.weight": (256, 2048, 3, 3),
        "detr.input_proj.3.1.weight": (256,),
        "detr.transformer.level_embed": (4, 256),
        "detr.transformer.encoder.layers.5.self_attn.sampling_offsets.weight": (256, 256),
        "detr.transformer.encoder.layers.5.self_attn.attention_weights.bias": (128,),
        "detr.transformer.encoder.layers.5.linear1.weight": (1024, 256),
        "detr.transformer.decoder.layers.5.cross_attn.value_proj.weight": (256, 256),
        "detr.transformer.decoder.layers.5.self_attn.in_proj_weight": (768, 256),
        "detr.transformer.decoder.layers.5.norm3.weight": (256,),
        "detr.transformer.decoder.bbox_embed.6.layers.2.weight": (4, 256),
        "detr.transformer.decoder.class_embed.6.bias": (1203,),
        "detr.transformer.enc_output.weight": (256, 256),
        "detr.transformer.pos_trans.weight": (512, 512),
        "detr.class_embed.0.weight": (1203, 256),
        "detr.bbox_embed.6.layers.0.weight": (256, 256),
    }
    assert {name: tuple(names[name].shape) for name in shapes} == shapes
    assert (
        names["detr.class_embed.6.weight"] is names["detr.transformer.decoder.class_embed.6.weight"]
    )
    batch: int = cfg.SOLVER.IMS_PER_BATCH
    assert batch == (16 if recipe.endswith("2x") else 32)
    assert model.supervision.with_image_labels == recipe.startswith("Detic")


def test_learning_rates_follow_the_names() -> None:
    model = tiny_model()
    optimizer = build_optimizer(tiny_config(), model)
    rates = {id(group["params"][0]): group["lr"] for group in optimizer.param_groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        slow = "backbone" in name or "sampling_offsets" in name
        assert rates[id(parameter)] == pytest.approx(2e-5 if slow else 2e-4), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__MASK_ON": True}, "MASK_ON"),
        ({"MODEL__VOCABULARY": "cat,dog"}, "VOCABULARY"),
        ({"FP16": True}, "AMP"),
        ({"MODEL__DETR__PRE_NORM": True}, "PRE_NORM"),
        ({"MODEL__DETR__WITH_BOX_REFINE": False}, "WITH_BOX_REFINE"),
        ({"MODEL__DETR__NUM_CLASSES": 0}, "NUM_CLASSES"),
        ({"MODEL__DETR__HIDDEN_DIM": 100}, "HIDDEN_DIM"),
        ({"MODEL__DETR__NUM_OBJECT_QUERIES": 0}, "NUM_OBJECT_QUERIES"),
        ({"DATALOADER__DATASET_ANN": "['box','prop']"}, "'prop'"),
    ],
)
def test_combinations_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    check_deformable_detr(tiny_config(), training=True)
    with pytest.raises(ConfigError, match=message):
        check_deformable_detr(tiny_config(**changes), training=True)


def test_too_few_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="NUM_FEATURE_LEVELS"):
        tiny_model(MODEL__DETR__NUM_FEATURE_LEVELS=2)


def test_one_stage_models_learn_too() -> None:
    model = tiny_model(MODEL__DETR__TWO_STAGE=False, MODEL__DETR__WITH_BOX_REFINE=False).train()
    losses = losses_of(model, [box_item()])
    assert "loss_ce_enc" not in losses
    sum(losses.values()).backward()
    assert model.detr.query_embed.weight.grad is not None
    assert "detr.transformer.reference_points.weight" in model.state_dict()


# --- weights ---------------------------------------------------------------------------------------------


def test_weights_load_back_completely(tmp_path: Path) -> None:
    model, other = tiny_model().eval(), tiny_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    report = load_model_weights(other, tmp_path / "model.pth")
    assert not report.missing
    assert not report.unexpected
    batch = [label_item([0])]
    with torch.no_grad():
        ours, theirs = (m(batch)[0]["instances"] for m in (model, other))
    assert torch.equal(ours.scores, theirs.scores)


def test_weights_of_a_backbone_find_their_place(tmp_path: Path) -> None:
    model = tiny_model()
    backbone = {
        name: torch.full_like(value, 0.5)
        for name, value in model.detr.backbone[0].backbone.state_dict().items()
    }
    torch.save({"model": backbone, "matching_heuristics": True}, tmp_path / "backbone.pth")
    report = load_model_weights(model, tmp_path / "backbone.pth")
    assert report.backbone == "detr.backbone.0.backbone."
    assert float(model.detr.backbone[0].backbone.stem.conv1.weight.detach().min()) == 0.5
