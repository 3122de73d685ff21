from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ext_common.checkpoint import Checkpointer, load_model_weights
from ext_common.errors import VocabularyError, WeightsError
from ext_common.vocabulary import Vocabulary
from ext_common.weights_match import pair_by_suffix, permit
from tests.ext_common.small_detector import Detector, randomised, same, save, words


def test_a_full_checkpoint_covers_the_model(tmp_path: Path) -> None:
    source, target = randomised(Detector()), Detector()
    report = load_model_weights(target, save(source, tmp_path / "a.pth"))
    assert report.complete
    assert set(report.loaded) == set(target.state_dict())
    assert same(source, target)


def test_weights_saved_from_ddp_load_into_the_plain_model(tmp_path: Path) -> None:
    source = randomised(Detector())
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    target = Detector()
    assert load_model_weights(target, tmp_path / "a.pth").complete
    assert same(source, target)


def test_uncovered_names_are_listed_and_the_model_is_left_alone(tmp_path: Path) -> None:
    path = save(
        randomised(Detector()),
        tmp_path / "a.pth",
        **{
            "head.bias": None,
            "extra.weight": torch.zeros(1),
            "head.weight": torch.zeros(5, 2),
            "backbone.fpn.bias": torch.tensor([1.0, float("nan")]),
        },
    )
    target = randomised(Detector(), seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_model_weights(target, path)
    text = str(error.value)
    for part in (
        str(path),
        "1 missing: head.bias",
        "1 unexpected: extra.weight",
        "1 mis-shaped: head.weight [5, 2] for [4, 2]",
        "1 not finite: backbone.fpn.bias",
        "--allow-partial",
    ):
        assert part in text
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_a_pattern_permits_what_it_matches_and_nothing_else(tmp_path: Path) -> None:
    source = randomised(Detector())
    path = save(source, tmp_path / "a.pth", **{"head.bias": None, "head.extra": torch.zeros(1)})
    target = Detector()
    report = load_model_weights(target, path, allow_partial=["head.*"])
    assert set(report.permitted) == {"head.bias", "head.extra"}
    assert same(source, target, but=("head.bias",))
    with pytest.raises(WeightsError, match=r"head\.bias"):
        load_model_weights(Detector(), path, allow_partial=["backbone.*", "*.extra"])


def test_not_a_number_cannot_be_permitted(tmp_path: Path) -> None:
    path = save(Detector(), tmp_path / "a.pth", **{"head.bias": torch.full((4,), float("inf"))})
    with pytest.raises(WeightsError, match="not finite"):
        load_model_weights(Detector(), path, allow_partial=["*"])


def test_without_strict_the_difference_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(randomised(Detector()), tmp_path / "a.pth", **{"head.bias": None})
    report = load_model_weights(Detector(), path, strict=False)
    assert report.missing == ("head.bias",)
    assert not report.complete
    assert "head.bias" in caplog.text


def test_another_models_file_is_refused_even_without_strict(tmp_path: Path) -> None:
    torch.save({"model": {"something.else": torch.zeros(2)}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="none of its tensors"):
        load_model_weights(Detector(), tmp_path / "a.pth", strict=False)


def test_known_differences_of_versions_are_no_difference(tmp_path: Path) -> None:
    counter = "backbone.bottom_up.stem.norm.num_batches_tracked"
    source = randomised(Detector())
    path = save(
        source,
        tmp_path / "a.pth",
        **{
            counter: torch.tensor(0),
            "pixel_mean": None,
            "pixel_std": torch.ones(3, 1, 1),
            "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
        },
    )
    target = Detector()
    assert load_model_weights(target, path).complete
    assert same(source, target, but=("pixel_mean",))
    # and the other way round: the model counts, the file does not
    counting = Detector()
    counting.backbone["bottom_up"]["stem"]["norm"].register_buffer(
        "num_batches_tracked", torch.tensor(0)
    )
    assert load_model_weights(counting, save(source, tmp_path / "b.pth")).complete


def test_shared_parameters_are_covered_by_either_name(tmp_path: Path) -> None:
    target = Detector()
    target.tied = target.head
    assert load_model_weights(target, save(randomised(Detector()), tmp_path / "a.pth")).complete


def backbone_tensors(source: nn.Module) -> dict[str, torch.Tensor]:
    prefix = "backbone.bottom_up."
    state = source.state_dict()
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {**found, "fc.weight": torch.zeros(7, 3), "stem.fc.bias": torch.zeros(7)}


def test_backbone_weights_cover_the_backbone_alone(tmp_path: Path) -> None:
    source, target = randomised(Detector()), randomised(Detector(), seed=2)
    head = target.head.weight.detach().clone()
    torch.save(backbone_tensors(source), tmp_path / "resnet.pth")
    report = load_model_weights(target, tmp_path / "resnet.pth")
    assert report.complete
    assert report.backbone == "backbone.bottom_up."
    prefix = "backbone.bottom_up."
    theirs = source.state_dict()
    for key, value in target.state_dict().items():
        if key.startswith(prefix):
            assert torch.equal(value, theirs[key])
    assert torch.equal(target.head.weight, head)


def test_backbone_weights_must_cover_the_whole_backbone(tmp_path: Path) -> None:
    tensors = backbone_tensors(randomised(Detector()))
    del tensors["res2.0.weight"]
    tensors["res3.0.weight"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"missing: backbone\.bottom_up\.res2\.0\.weight.*res3"):
        load_model_weights(Detector(), tmp_path / "resnet.pth")


def test_detectron2_pickles_are_matched_by_the_end_of_their_names(tmp_path: Path) -> None:
    source = randomised(Detector())
    arrays = {key: value.numpy() for key, value in backbone_tensors(source).items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content))
    target, oracle = (randomised(Detector(), seed=3) for _ in range(2))
    assert load_model_weights(target, tmp_path / "R.pkl").complete
    DetectionCheckpointer(oracle).load(str(tmp_path / "R.pkl"))
    assert same(target, oracle)


def test_caffe2_weights_need_no_running_statistics(tmp_path: Path) -> None:
    source = randomised(Detector())
    prefix = "backbone.bottom_up."
    blobs = {
        "conv1_w": source.state_dict()[f"{prefix}stem.conv1.weight"].numpy(),
        "conv1_b": source.state_dict()[f"{prefix}stem.conv1.bias"].numpy(),
        "fc1000_w": np.zeros((2, 2), np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
    }
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    target = Detector()
    report = load_model_weights(
        target, tmp_path / "R.pkl", allow_partial=["*.res2.*", "*.norm.weight", "*.norm.bias"]
    )
    assert report.complete
    stem = target.backbone["bottom_up"]["stem"]
    assert np.array_equal(stem["conv1"].weight.detach().numpy(), blobs["conv1_w"])
    assert torch.equal(stem["norm"].running_mean, torch.zeros(3))


class _Foreign(Detector):
    """Knows files whose names begin with ``theirs/``."""

    def translate_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name.removeprefix("theirs/"): tensor for name, tensor in tensors.items()}


def test_a_model_translates_foreign_names_and_coverage_stays_strict(tmp_path: Path) -> None:
    source, path = randomised(Detector()), tmp_path / "a.pth"
    state = {f"theirs/{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save(state, path)
    target = _Foreign()
    assert load_model_weights(target, path).complete
    assert same(source, target)
    with pytest.raises(WeightsError, match="none of its tensors"):
        load_model_weights(Detector(), path)
    del state["theirs/head.bias"]
    torch.save(state | {"theirs/extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"1 missing: head\.bias; 1 unexpected: extra"):
        load_model_weights(_Foreign(), path)


def test_the_log_names_what_a_file_may_lack_and_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(randomised(Detector()), tmp_path / "a.pth", **{"head.bias": None})
    with caplog.at_level(logging.INFO):
        load_model_weights(Detector(), path, allow_partial=["head.*", "backbone.*", "*.extra"])
    (line,) = (r.message for r in caplog.records if r.message.startswith("not taken from"))
    assert line.endswith(": head.*")


def test_equal_endings_go_below_the_prefix_of_the_others() -> None:
    shape = torch.zeros(1)
    model = dict.fromkeys(
        ["b.conv1.w", "b.layer1.conv1.w", "b.layer1.conv2.w", "mask.conv1.w", "res5.x"], shape
    )
    stored = dict.fromkeys(["conv1.w", "layer1.conv1.w", "layer1.conv2.w", "x"], shape)
    pairs, prefix = pair_by_suffix(stored, model)
    assert prefix == "b."
    assert pairs == {
        "b.conv1.w": "conv1.w",
        "b.layer1.conv1.w": "layer1.conv1.w",
        "b.layer1.conv2.w": "layer1.conv2.w",
        "res5.x": "x",
    }


def test_class_columns_of_another_vocabulary_are_left_out_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = randomised(Detector(vocabulary=words("a", "b", "c")))
    target = Detector(vocabulary=words("d", "e"))
    columns = target.head.zs_weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_model_weights(target, save(source, tmp_path / "a.pth"))
    assert set(report.kept) == {"head.zs_weight", "head.freq_weight"}
    assert torch.equal(target.head.zs_weight, columns)
    assert torch.equal(target.head.weight, source.head.weight)
    assert sum("class columns stay" in record.message for record in caplog.records) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_class_columns_do_not_fit_a_model_without_a_vocabulary(tmp_path: Path) -> None:
    target = Detector()
    target.head.register_buffer("zs_weight", torch.zeros(2, 5))
    path = save(Detector(vocabulary=words("a", "b", "c")), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"zs_weight \[2, 3\] for \[2, 5\].*MODEL.VOCABULARY"):
        load_model_weights(target, path)


def test_the_recorded_vocabulary_decides_about_columns_of_the_same_shape(tmp_path: Path) -> None:
    vocabulary = words("a", "b")
    source = randomised(Detector(vocabulary=vocabulary))
    Checkpointer(source, tmp_path).save("model_0000000", iteration=0)
    path = tmp_path / "model_0000000.pth"
    equal, other = Detector(vocabulary=vocabulary), Detector(vocabulary=words("a", "c"))
    assert load_model_weights(equal, path).kept == ()
    assert torch.equal(equal.head.zs_weight, source.head.zs_weight)
    report = load_model_weights(other, path)
    assert "head.zs_weight" in report.kept
    assert report.vocabulary is not None
    assert Vocabulary.from_state_dict(report.vocabulary) == vocabulary


def test_a_head_of_another_text_encoder_is_refused(tmp_path: Path) -> None:
    source = Detector(vocabulary=words("a", "b", encoder="clip"))
    Checkpointer(source, tmp_path).save("model_0000000", iteration=0)
    path = tmp_path / "model_0000000.pth"
    target = Detector(vocabulary=words("a", "b", encoder="hash"))
    with pytest.raises(VocabularyError, match=r"clip.*hash.*TEXT_ENCODER"):
        load_model_weights(target, path)
    assert load_model_weights(target, path, allow_partial=["*zs_weight"]).complete


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("detectron2://ImageNetPretrained/R-50.pkl", "address"),
        ("https://example.org/x.pth", "download the file yourself"),
        ("/no/such/file.pth", "no such file"),
    ],
)
def test_what_is_no_local_file_is_explained(path: str, text: str) -> None:
    with pytest.raises(WeightsError, match=text):
        load_model_weights(Detector(), path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["PAYLOAD_FOLDER"],))


@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_a_payload_does_not_run(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("PAYLOAD_FOLDER", str(tmp_path / "ran"))
    content = {"model": {"head.weight": Payload()}, "__author__": "x"}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(WeightsError, match="unsafe"):
        load_model_weights(Detector(), tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_permitting_nothing_changes_nothing(tmp_path: Path) -> None:
    path = save(Detector(), tmp_path / "a.pth", **{"head.bias": None})
    report = load_model_weights(Detector(), path, strict=False)
    assert permit(report, []) == report
