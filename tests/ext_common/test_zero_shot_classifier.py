"""The zero-shot classifier: numbers of the authors' code, plain loops, sharing, loading."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ext_common.errors import VocabularyError
from ext_common.modeling.zero_shot_classifier import (
    ZeroShotClassifier,
    prepare_classifier,
    share_classifier_weights,
)
from tests.golden_cases import golden_arrays


def _classifier(num_classes: int = 5, input_dim: int = 6, weight_dim: int = 4, **options):
    emb_CD = torch.randn(num_classes, weight_dim)
    weight_DK = prepare_classifier(emb_CD, normalize=options.get("normalize", True))
    return ZeroShotClassifier(
        input_dim=input_dim, weight_dim=weight_dim, weight_DK=weight_DK, **options
    )


GOLDEN = golden_arrays("detic", "zs_classifier.npz")


# --- golden -------------------------------------------------------------------------------------


def _options(name: str) -> dict[str, float | bool]:
    """Constructor options from a key such as ``logits_bias_m4p6`` or ``logits_temp20``."""
    options: dict[str, float | bool] = {}
    if name.endswith("_bias"):  # the value stands in the name of the case without a classifier
        name = next(key for key in sorted(GOLDEN) if key.startswith("logits_bias_"))
    if found := re.search(r"bias_(m?)(\d+)p(\d+)", name):
        sign, whole, part = found.groups()
        options["bias"] = float(f"{'-' if sign else ''}{whole}.{part}")
    if found := re.search(r"temp(\d+)", name):
        options["temperature"] = float(found.group(1))
    if "no_norm" in name:
        options["normalize"] = False
    return options


def _golden_classifier(g: dict[str, np.ndarray], name: str) -> ZeroShotClassifier:
    options = _options(name)
    emb_CD = torch.from_numpy(g["zs_file"])
    weight_DK = prepare_classifier(emb_CD, normalize=bool(options.get("normalize", True)))
    width, input_dim = g["linear_weight"].shape
    model = ZeroShotClassifier(
        input_dim=input_dim, weight_dim=width, weight_DK=weight_DK, **options
    )
    model.linear.weight.data = torch.from_numpy(g["linear_weight"])
    model.linear.bias.data = torch.from_numpy(g["linear_bias"])
    return model


def _close(actual: Tensor, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", sorted(key for key in GOLDEN if key.startswith("logits_")))
def test_golden_logits(name: str) -> None:
    model = _golden_classifier(GOLDEN, name)
    x = torch.from_numpy(GOLDEN["x"])
    if "dyn_classifier" in name:
        columns = model.prepare(torch.from_numpy(GOLDEN["dyn_classifier"]))
        _close(model(x, columns), GOLDEN[name])
        return
    if name == "logits_reset":
        model.set_classifier(prepare_classifier(torch.from_numpy(GOLDEN["zs_file_new_vocab"])))
    _close(model(x), GOLDEN[name])


@pytest.mark.golden
def test_golden_buffers() -> None:
    model = _golden_classifier(GOLDEN, "")
    _close(model.zs_weight, GOLDEN["zs_weight_buffer"])
    model.set_classifier(prepare_classifier(torch.from_numpy(GOLDEN["zs_file_new_vocab"])))
    _close(model.zs_weight, GOLDEN["reset_zs_weight"])
    _close(model.state_dict()["zs_weight"], GOLDEN["reset_zs_weight"])


@pytest.mark.golden
def test_golden_captions_and_dynamic_classes() -> None:
    g = golden_arrays("detic", "image_losses.npz")
    width, input_dim = g["fwd_linear_weight"].shape
    model = ZeroShotClassifier(
        input_dim=input_dim, weight_dim=width, weight_DK=torch.from_numpy(g["fwd_zs_weight"])
    )
    model.linear.weight.data = torch.from_numpy(g["fwd_linear_weight"])
    model.linear.bias.data = torch.from_numpy(g["fwd_linear_bias"])
    x = torch.from_numpy(g["fwd_x"])
    captions = model.prepare(torch.from_numpy(g["fwd_caption_features"]))
    embedded = model.embed(x)
    both = torch.cat([model.score(embedded), model.score(embedded, captions)], dim=1)
    _close(both, g["fwd_scores_caption"])
    dynamic = model.prepare(torch.from_numpy(g["fwd_dyn_features"]))
    _close(model(x, dynamic), g["fwd_scores_dyn"])


# --- prepare_classifier ---------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 5), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_prepared_columns_match_a_plain_loop(
    classes: int, width: int, normalize: bool, background: bool
) -> None:
    emb = torch.randn(classes, width) * 9
    columns = prepare_classifier(emb, normalize=normalize, background=background)
    assert columns.shape == (width, classes + background)
    for c in range(classes):
        norm = sum(float(v) ** 2 for v in emb[c]) ** 0.5 if normalize else 1.0
        for d in range(width):
            assert columns[d, c].item() == pytest.approx(emb[c, d].item() / norm, rel=1e-5)
    if background:
        assert (columns[:, -1] == 0).all()


def test_half_precision_embeddings_are_normalised_in_single_precision() -> None:
    emb = torch.randn(3, 512).half() * 10
    columns = prepare_classifier(emb)
    assert columns.dtype == torch.float32
    torch.testing.assert_close(columns[:, :3].norm(dim=0), torch.ones(3), rtol=1e-6, atol=1e-6)


def test_zero_embedding_stays_zero() -> None:
    assert (prepare_classifier(torch.zeros(2, 4)) == 0).all()


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0), (2, 2, 2)])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VocabularyError, match="one row per class"):
        prepare_classifier(torch.zeros(shape))


# --- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [0.0, -4.5])
def test_forward_matches_a_plain_loop(normalize: bool, bias: float) -> None:
    model = _classifier(normalize=normalize, bias=bias, temperature=20.0).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    logits = model(x).detach()
    weight, offset = model.linear.weight.detach(), model.linear.bias.detach()
    for r in range(3):
        y = [
            sum(float(w) * float(v) for w, v in zip(row, x[r], strict=True)) + float(b)
            for row, b in zip(weight, offset, strict=True)
        ]
        length = sum(v * v for v in y) ** 0.5
        y = [20.0 * v / length for v in y] if normalize else y
        for k in range(model.num_columns):
            column = model.zs_weight[:, k]
            expected = sum(v * float(w) for v, w in zip(y, column, strict=True)) + min(bias, 0)
            assert logits[r, k].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_background_logit_is_zero() -> None:
    assert (_classifier()(torch.randn(4, 6))[:, -1] == 0).all()


def test_parameter_names_are_those_of_published_models() -> None:
    assert set(_classifier().state_dict()) == {"linear.weight", "linear.bias", "zs_weight"}
    with_bias = _classifier(bias=-4.6).state_dict()
    assert with_bias["cls_bias"].item() == pytest.approx(-4.6)
    assert not _classifier().zs_weight.requires_grad


@given(st.lists(st.integers(0, 5), max_size=8))
@settings(max_examples=30, deadline=None)
def test_some_columns_equal_those_of_the_full_product(columns: list[int]) -> None:
    model = _classifier(bias=-1.0)
    x = torch.randn(3, 6)
    chosen = torch.tensor(columns, dtype=torch.int64)
    torch.testing.assert_close(model(x, columns_S=chosen), model(x)[:, chosen])
    other = model.prepare(torch.randn(6, 4))
    torch.testing.assert_close(model(x, other, chosen), model(x, other)[:, chosen])


def test_gradients() -> None:
    model = _classifier(bias=-1.0).double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))
    assert torch.autograd.gradcheck(lambda e: model(x, model.prepare(e)), (emb,))
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(model, {"linear.weight": w}, (x,)),
        (model.linear.weight.detach().clone().requires_grad_(),),
    )


def test_trained_columns_start_prepared_and_get_gradients_only_where_used() -> None:
    model = ZeroShotClassifier(input_dim=6, weight_dim=4, num_classes=5)
    assert isinstance(model.zs_weight, torch.nn.Parameter)
    assert model.zs_weight.shape == (4, 6)
    torch.testing.assert_close(model.zs_weight[:, :5].norm(dim=0), torch.ones(5))
    model(torch.randn(3, 6), columns_S=torch.tensor([1, 3])).sum().backward()
    used = model.zs_weight.grad.abs().sum(dim=0) > 0
    assert used.tolist() == [False, True, False, True, False, False]


def test_half_precision_step_keeps_logits_exact() -> None:
    model = _classifier()
    x = torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        embedded = model.embed(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, embedded @ model.zs_weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_DK": torch.zeros(3, 5)}, "projects to 4"),
        ({"weight_DK": torch.zeros(4)}, "projects to 4"),
        ({}, "needs its classes"),
    ],
)
def test_a_classifier_without_fitting_columns_is_refused(options, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        ZeroShotClassifier(input_dim=6, weight_dim=4, **options)


# --- new vocabularies, sharing, loading -----------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
def test_new_vocabulary_is_saved_with_the_model(trained: bool) -> None:
    model = (
        ZeroShotClassifier(input_dim=6, weight_dim=4, num_classes=5) if trained else _classifier()
    )
    columns = prepare_classifier(torch.randn(2, 4))
    model.set_classifier(columns)
    assert model(torch.randn(3, 6)).shape == (3, 3)
    torch.testing.assert_close(model.state_dict()["zs_weight"], columns)
    assert "zs_weight" not in dict(model.named_parameters())


def _stages(count: int = 3) -> torch.nn.ModuleList:
    weight_DK = prepare_classifier(torch.randn(5, 4))
    stages = torch.nn.ModuleList(
        ZeroShotClassifier(input_dim=6, weight_dim=4, weight_DK=weight_DK.clone())
        for _ in range(count)
    )
    share_classifier_weights(list(stages))
    return stages


def _storages(stages: torch.nn.ModuleList) -> set[int]:
    return {stage.zs_weight.data_ptr() for stage in stages}


@pytest.mark.parametrize(
    "change",
    [
        lambda stages: stages.double(),
        lambda stages: stages.to(torch.bfloat16),
        lambda stages: stages.to_empty(device="cpu"),
        copy.deepcopy,
        lambda stages: (stages[1].set_classifier(torch.ones(4, 9)), stages)[1],
        lambda stages: (stages.load_state_dict(_stages().state_dict()), stages)[1],
    ],
    ids=["double", "bfloat16", "to_empty", "deepcopy", "set_classifier", "load"],
)
def test_stages_keep_one_matrix_and_their_own_keys(change) -> None:
    stages = change(_stages())
    assert len(_storages(stages)) == 1
    keys = [key for key in stages.state_dict() if key.endswith("zs_weight")]
    assert keys == ["0.zs_weight", "1.zs_weight", "2.zs_weight"]
    shapes = {stage.zs_weight.shape for stage in stages}
    assert len(shapes) == 1


def test_a_copy_does_not_share_with_its_original() -> None:
    stages = _stages()
    twin = copy.deepcopy(stages)
    twin[0].set_classifier(torch.ones(4, 3))
    assert stages[0].num_columns == 6
    assert [stage.num_columns for stage in twin] == [3, 3, 3]


def test_stages_without_memory_can_share() -> None:
    with torch.device("meta"):
        stages = [_classifier(), _classifier()]
        share_classifier_weights(stages)
        assert stages[0].zs_weight is stages[1].zs_weight
        with pytest.raises(VocabularyError, match="different classes"):
            share_classifier_weights([_classifier(), _classifier(num_classes=9)])


def test_stages_of_different_or_trained_columns_cannot_share() -> None:
    with pytest.raises(VocabularyError, match="different classes"):
        share_classifier_weights([_classifier(), _classifier()])
    trained = ZeroShotClassifier(input_dim=6, weight_dim=4, num_classes=5)
    with pytest.raises(VocabularyError, match="trained"):
        share_classifier_weights([trained, trained])


def test_loading_another_number_of_classes_is_an_error_unless_wanted() -> None:
    stored = _classifier(num_classes=9).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        _classifier().load_state_dict(stored)

    keeps = _classifier(on_class_mismatch="keep")
    own = keeps.zs_weight.clone()
    keeps.load_state_dict(stored)
    torch.testing.assert_close(keeps.zs_weight, own)
    torch.testing.assert_close(keeps.linear.weight, stored["linear.weight"])

    adopts = _classifier(on_class_mismatch="adopt")
    adopts.load_state_dict(stored)
    torch.testing.assert_close(adopts.zs_weight, stored["zs_weight"])


def test_cascade_adopts_a_stored_vocabulary_once() -> None:
    stages, stored = _stages(), _stages()
    stored[0].set_classifier(prepare_classifier(torch.randn(9, 4)))
    for stage in stages:
        stage.on_class_mismatch = "adopt"
    stages.load_state_dict(stored.state_dict())
    assert len(_storages(stages)) == 1
    torch.testing.assert_close(stages[2].zs_weight, stored[2].zs_weight)
