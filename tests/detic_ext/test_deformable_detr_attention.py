"""Deformable attention and the geometry around it, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detic_ext.modeling.deformable_detr.attention import (
    LevelShapes,
    MultiScaleDeformableAttention,
    deformable_attention,
)
from detic_ext.modeling.deformable_detr.geometry import (
    Memory,
    inverse_sigmoid,
    level_geometry,
    move_references,
    sine_embedding,
)
from detic_ext.modeling.deformable_detr.options import TransformerOptions
from detic_ext.modeling.deformable_detr.transformer import DeformableTransformer

SHAPES: LevelShapes = ((3, 4), (2, 1))
TOKENS = 14


def loop_attention(values: Tensor, shapes: LevelShapes, points: Tensor, weights: Tensor) -> Tensor:
    """One cell, one corner, one sample after another (double precision)."""
    batch, _, heads, channels = values.shape
    queries, levels, count = points.shape[1], len(shapes), points.shape[4]
    out = torch.zeros(batch, queries, heads, channels, dtype=values.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                first = 0
                for level in range(levels):
                    height, width = shapes[level]
                    for p in range(count):
                        x = points[b, q, m, level, p, 0].item() * width - 0.5
                        y = points[b, q, m, level, p, 1].item() * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                                    cell = first + row * width + column
                                    factor = weights[b, q, m, level, p] * share
                                    out[b, q, m] += factor * values[b, cell, m]
                    first += height * width
    return out.flatten(2)


def samples(
    batch: int = 2, queries: int = 3, heads: int = 2, points: int = 2
) -> tuple[Tensor, ...]:
    levels = len(SHAPES)
    values = torch.randn(batch, TOKENS, heads, 3, dtype=torch.float64)
    # some points outside of the maps
    places = torch.rand(batch, queries, heads, levels, points, 2, dtype=torch.float64) * 1.6 - 0.3
    logits = torch.randn(batch, queries, heads, levels * points, dtype=torch.float64)
    weights = logits.softmax(-1).view(batch, queries, heads, levels, points)
    return values, places, weights


def test_attention_is_that_of_plain_loops() -> None:
    values, places, weights = samples()
    got = deformable_attention(values, SHAPES, places, weights)
    assert torch.allclose(got, loop_attention(values, SHAPES, places, weights), atol=1e-12)


def test_gradients_of_values_points_and_weights() -> None:
    values, places, weights = (t.requires_grad_() for t in samples(1, 2, 2, 2))
    assert torch.autograd.gradcheck(
        lambda v, p, w: deformable_attention(v, SHAPES, p, w), (values, places, weights)
    )


def attention_module(width: int = 8) -> MultiScaleDeformableAttention:
    module = MultiScaleDeformableAttention(width=width, heads=2, levels=2, points=2).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("numbers", [2, 4])
def test_the_module_puts_its_points_around_the_reference(numbers: int) -> None:
    module = attention_module()
    queries = torch.randn(1, 3, 8, dtype=torch.float64)
    tokens = torch.randn(1, TOKENS, 8, dtype=torch.float64)
    references = torch.rand(1, 3, 2, numbers, dtype=torch.float64)
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)
    padding[0, [3, 13]] = True
    got = module(queries, references, tokens, SHAPES, padding)

    values = module.value_proj(tokens)
    values[padding] = 0
    offsets = module.sampling_offsets(queries).view(1, 3, 2, 2, 2, 2)
    weights = module.attention_weights(queries).view(1, 3, 2, 4).softmax(-1).view(1, 3, 2, 2, 2)
    places = torch.empty_like(offsets)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in offsets.shape)).tolist():
        b, q, m, level, p, axis = index
        offset, reference = offsets[b, q, m, level, p, axis], references[b, q, level]
        if numbers == 2:
            cells = SHAPES[level][1 - axis]  # x runs along the width
            place = reference[axis] + offset / cells
        else:
            place = reference[axis] + offset / 2 * reference[2 + axis] / 2
        places[b, q, m, level, p, axis] = place
    wanted = module.output_proj(
        loop_attention(values.view(1, TOKENS, 2, 4), SHAPES, places, weights)
    )
    assert torch.allclose(got, wanted, atol=1e-12)


def test_heads_start_in_different_directions_and_points_at_growing_distance() -> None:
    module = MultiScaleDeformableAttention(width=8, heads=4, levels=2, points=3)
    offsets = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    assert torch.allclose(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 0, 0], torch.tensor([0.0, 1.0]), atol=1e-6)
    assert module.sampling_offsets.weight.abs().sum() == 0
    assert module.attention_weights.bias.abs().sum() == 0


def test_queries_and_images_may_come_in_any_order() -> None:
    module = attention_module()
    queries = torch.randn(2, 5, 8, dtype=torch.float64)
    tokens = torch.randn(2, TOKENS, 8, dtype=torch.float64)
    references = torch.rand(2, 5, 2, 2, dtype=torch.float64)
    padding = torch.rand(2, TOKENS) < 0.2
    plain = module(queries, references, tokens, SHAPES, padding)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = module(queries[:, order], references[:, order], tokens, SHAPES, padding)
    assert torch.allclose(moved, plain[:, order], atol=1e-12)
    swapped = module(queries.flip(0), references.flip(0), tokens.flip(0), SHAPES, padding.flip(0))
    assert torch.allclose(swapped, plain.flip(0), atol=1e-12)


def test_points_are_computed_in_single_precision_in_a_half_precision_step() -> None:
    module = MultiScaleDeformableAttention(width=8, heads=2, levels=2, points=2)
    inputs = (torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2), torch.randn(1, TOKENS, 8))
    padding = torch.zeros(1, TOKENS, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(*inputs, SHAPES, padding)
    exact = module(*inputs, SHAPES, padding)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, atol=0.05)


# --- geometry ------------------------------------------------------------------------------------


def test_cells_of_a_padded_batch() -> None:
    geometry = level_geometry([(16, 20), (9, 32)], ((2, 4), (1, 2)), (8, 16), torch.device("cpu"))
    assert geometry.cells == [8, 2]
    # 20 px are 2.5 cells of 8: 3 are covered; 9 px are 2 cells
    assert geometry.padding_BT.tolist() == [
        [False, False, False, True, False, False, False, True, False, False],
        [False, False, False, False, False, False, False, False, False, False],
    ]
    assert torch.allclose(
        geometry.covered_BL2, torch.tensor([[[0.75, 1], [1, 1]], [[1, 1], [1, 1]]])
    )
    assert torch.allclose(geometry.centres_BT2[0, 5], torch.tensor([1.5 / 3, 1.5 / 2]))
    assert bool((geometry.centres_BT2[~geometry.padding_BT] < 1).all())
    boxes = geometry.on_levels(torch.tensor([[[0.5, 0.5, 0.2, 0.4]], [[0.5, 0.5, 0.2, 0.4]]]))
    assert torch.allclose(boxes[0, 0, 0], torch.tensor([0.375, 0.5, 0.15, 0.4]))


def test_logits_of_shares_are_finite_and_invert_the_sigmoid() -> None:
    shares = torch.tensor([-1.0, 0.0, 1e-9, 0.3, 1.0, 7.0])
    logits = inverse_sigmoid(shares)
    assert bool(logits.isfinite().all())
    assert torch.allclose(logits.sigmoid(), shares.clamp(1e-5, 1 - 1e-5), atol=1e-6)
    assert inverse_sigmoid(shares.half()).dtype == torch.float32


@pytest.mark.parametrize("known", [2, 4])
def test_boxes_are_never_inverted_whatever_is_predicted(known: int) -> None:
    deltas = torch.tensor([[1e30, -1e30, 1e30, -1e30], [0.0, 0.0, 0.0, 0.0]])
    references = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.25, 0.5, 0.125, 0.75]])[:, :known]
    boxes = move_references(references, deltas)
    assert bool(((boxes >= 0) & (boxes <= 1)).all())
    assert torch.allclose(boxes[1, :known], references[1])
    assert torch.allclose(boxes[1, known:], torch.full((4 - known,), 0.5))


def test_sine_embedding_is_that_of_a_loop() -> None:
    shares = torch.tensor([[0.1, 0.9], [0.5, 0.0]])
    got = sine_embedding(shares, 6)
    for row in range(2):
        wanted = []
        for share in shares[row].tolist():
            for pair in range(3):
                angle = share * 2 * math.pi / 10000 ** (2 * pair / 6)
                wanted += [math.sin(angle), math.cos(angle)]
        assert torch.allclose(got[row], torch.tensor(wanted), atol=1e-6)


# --- the whole transformer -------------------------------------------------------------------------


def small_transformer(**changes: object) -> DeformableTransformer:
    settings: dict[str, object] = {
        "width": 64, "heads": 4, "levels": 2, "feed_forward": 16,
        "encoder_layers": 1, "decoder_layers": 2, "queries": 4, "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(3)
    transformer = DeformableTransformer(
        TransformerOptions(**(settings | changes)),  # type: ignore[arg-type]
        num_classes=3,
    )
    with torch.no_grad():  # boxes that depend on what is seen
        for head in transformer.decoder.bbox_embed:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
    return transformer.eval()


def test_what_is_on_the_padding_changes_nothing() -> None:
    transformer = small_transformer()
    geometry = level_geometry([(16, 16), (32, 32)], ((4, 4), (2, 2)), (8, 16), torch.device("cpu"))
    maps = [torch.randn(2, 64, 4, 4), torch.randn(2, 64, 2, 2)]
    with torch.no_grad():
        plain, proposals = transformer(maps, geometry)
        maps[0][0, :, 2:], maps[0][0, :, :, 2:] = 50.0, -70.0
        maps[1][0, :, 1:], maps[1][0, :, :, 1:] = 30.0, -20.0
        noisy, noisy_proposals = transformer(maps, geometry)
    assert proposals is not None
    assert noisy_proposals is not None
    for before, after in zip(plain, noisy, strict=True):
        assert torch.allclose(before.boxes_BQ4, after.boxes_BQ4, atol=1e-5)
        assert torch.allclose(before.states_BQD, after.states_BQD, atol=1e-4)
    assert int(proposals.usable_BT[0].sum()) == 4 + 1
    assert torch.allclose(
        proposals.logits_BT[proposals.usable_BT], noisy_proposals.logits_BT[proposals.usable_BT],
        atol=1e-4,
    )  # fmt: skip


def test_queries_start_at_the_best_usable_tokens() -> None:
    transformer = small_transformer(queries=3)
    geometry = level_geometry([(32, 32)], ((4, 4), (2, 2)), (8, 16), torch.device("cpu"))
    with torch.no_grad():
        proposals = transformer._propose(Memory(torch.randn(1, 20, 64), geometry))
        boxes = transformer._best_boxes(proposals)
    scores = [
        (float(score), box)
        for score, box, usable in zip(
            proposals.logits_BT[0], proposals.boxes_BT4[0], proposals.usable_BT[0], strict=True
        )
        if usable
    ]
    best = sorted(scores, key=lambda pair: -pair[0])[:3]
    assert torch.equal(boxes[0], torch.stack([box for _, box in best]))


@pytest.mark.parametrize("refine", [True, False])
def test_learned_queries_keep_their_order(refine: bool) -> None:
    transformer = small_transformer(two_stage=False, refine=refine)
    geometry = level_geometry([(32, 32)], ((4, 4), (2, 2)), (8, 16), torch.device("cpu"))
    maps, learned = [torch.randn(1, 64, 4, 4), torch.randn(1, 64, 2, 2)], torch.randn(5, 128)
    order = torch.tensor([4, 2, 0, 1, 3])
    with torch.no_grad():
        plain, proposals = transformer(maps, geometry, learned)
        moved, _ = transformer(maps, geometry, learned[order])
    assert proposals is None
    assert len(plain) == 2
    for before, after in zip(plain, moved, strict=True):
        assert torch.allclose(before.boxes_BQ4[:, order], after.boxes_BQ4, atol=1e-5)


def test_refinement_starts_from_the_boxes_of_the_layer_before() -> None:
    refined, plain = small_transformer(), small_transformer(refine=False)
    geometry = level_geometry([(32, 32)], ((4, 4), (2, 2)), (8, 16), torch.device("cpu"))
    maps = [torch.randn(1, 64, 4, 4), torch.randn(1, 64, 2, 2)]
    with torch.no_grad():
        for transformer in (refined, plain):
            for head in transformer.decoder.bbox_embed:  # every layer moves a box by one logit
                torch.nn.init.zeros_(head.layers[-1].weight)
                torch.nn.init.constant_(head.layers[-1].bias, 1.0)
        steps, same = refined(maps, geometry)[0], plain(maps, geometry)[0]
    moved = inverse_sigmoid(steps[1].boxes_BQ4) - inverse_sigmoid(steps[0].boxes_BQ4)
    inner = (steps[0].boxes_BQ4 < 0.99) & (steps[1].boxes_BQ4 < 0.99)
    assert bool(inner.any())
    assert torch.allclose(moved[inner], torch.ones_like(moved[inner]), atol=1e-2)
    assert torch.allclose(same[0].boxes_BQ4, same[1].boxes_BQ4)
