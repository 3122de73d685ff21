from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ext_common.checkpoint import load_model_weights
from ext_common.modeling.zero_shot_classifier import prepare_classifier
from ext_common.stored_weights import read_weights
from ext_common.vocabulary import Vocabulary
from ext_common.weights_export import ExportedWeights, write_weights
from ext_common.weights_io import load_tensors, save_tensors_atomic
from tests.golden_cases import golden_arrays, golden_root
from tools import convert_weights

REPOSITORY = Path(__file__).parents[2]
LISTS = {
    "state_dict_R50.json": 53,
    "state_dict_extra_R18_LCOCOI21k.json": 20,
    "state_dict_extra_CXT_LCOCOI21k.json": 0,
    "state_dict_SwinB.json": 0,
    "state_dict_OVCOCO.json": 53,
}
COUNTER = "num_batches_tracked"


def convert(path: Path, *words: str | Path) -> int:
    return convert_weights.main(["--path", str(path), *map(str, words)])


def official_names(file: str) -> list[str]:
    return list(json.loads((golden_root() / "detic" / file).read_text(encoding="utf-8")))


def made_detector(names: list[str], classes: int = 3) -> dict[str, Tensor]:
    """Small tensors under the names of a published model; stages share their class columns."""
    columns = prepare_classifier(torch.randn(classes, 4))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name.endswith("zs_weight"):
            tensors[name] = columns
        elif name.endswith("freq_weight"):
            tensors[name] = torch.rand(classes)
        elif name.endswith(COUNTER):
            tensors[name] = torch.zeros((), dtype=torch.int64)
        else:
            tensors[name] = torch.randn(4, 2)
    return tensors


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert not [line for line in lines if line.startswith("Traceback")]
    return lines[-1]


@pytest.mark.golden
@pytest.mark.parametrize("file", LISTS)
def test_golden_lists_with_and_without_counters(tmp_path: Path, file: str) -> None:
    names = official_names(file)
    tensors = made_detector([name for name in names if not name.endswith(COUNTER)])
    old, new, back = (tmp_path / f"{part}.pth" for part in ("old", "new", "back"))
    save_tensors_atomic({"model": tensors}, old)
    assert convert(old, "--output", new, "--counters", "add") == 0
    assert convert(new, "--output", back, "--counters", "drop") == 0
    added = load_tensors(new)["model"]
    counters = [name for name in added if name.endswith(COUNTER)]
    assert len(counters) == LISTS[file]
    assert all(added[name].dtype == torch.int64 for name in counters)
    # the lists of frozen batch norms in newer detectron2 have the same names
    assert set(names) <= set(added)
    assert same(load_tensors(back)["model"], tensors)


@pytest.mark.golden
def test_a_golden_checkpoint_becomes_other_formats_and_back(tmp_path: Path) -> None:
    source = golden_root() / "detic" / "e2e_c2_model.pth"
    expected = dict(read_weights(source).tensors)
    path = source
    for suffix in ("safetensors", "pkl", "pth"):
        output = tmp_path / f"model.{suffix}"
        assert convert(path, "--output", output) == 0
        found = read_weights(output)
        assert not found.by_suffix
        assert same(dict(found.tensors), expected)
        path = output
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.pkl",
        "model.pth",
        "model.safetensors",
    ]


def golden_config(tmp_path: Path, name: str) -> Path:
    """The published base with the overrides that a golden model was made with."""
    arrays = golden_arrays("detic", f"{name}.npz")
    base = REPOSITORY / "configs" / "detic" / str(arrays["config_base"])
    content: dict[str, Any] = {"_BASE_": str(base)}
    overrides: dict[str, Any] = json.loads(str(arrays["config_overrides_json"]))
    for key, value in overrides.items():
        *blocks, leaf = key.split(".")
        node = content
        for block in blocks:
            node = node.setdefault(block, {})
        node[leaf] = value
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file


@pytest.mark.golden
@pytest.mark.parametrize("name", ["e2e_c2", "e2e_c4"])
def test_a_golden_checkpoint_covers_its_model(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = golden_root() / "detic" / f"{name}_model.pth"
    count = len(read_weights(source).tensors)
    assert convert(source, "--check", golden_config(tmp_path, name)) == 0
    shown = capsys.readouterr().out
    assert f"loaded: {count} tensors" in shown
    assert shown.endswith("covers the model\n")
    assert "not cover" not in shown


@pytest.mark.golden
def test_the_check_names_what_differs_from_a_golden_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = dict(read_weights(golden_root() / "detic" / "e2e_c2_model.pth").tensors)
    missing = "backbone.fpn_lateral3.weight"
    del tensors[missing]
    tensors["roi_heads.box_head.0.fc1.bias"] = torch.zeros(3)
    tensors["something.else"] = torch.zeros(1)
    save_tensors_atomic({"model": tensors}, tmp_path / "changed.pth")
    assert convert(tmp_path / "changed.pth", "--check", golden_config(tmp_path, "e2e_c2")) == 1
    shown = capsys.readouterr().out
    assert f"missing: 1\n  {missing}\n" in shown
    assert "unexpected: 1\n  something.else\n" in shown
    assert "mis-shaped: 1\n  roi_heads.box_head.0.fc1.bias: [3] for [48]\n" in shown
    assert shown.endswith("does not cover the model\n")


@pytest.mark.golden
def test_a_golden_detector_for_other_classes(tmp_path: Path) -> None:
    source = golden_root() / "detic" / "e2e_c2_model.pth"
    rows_CD = golden_arrays("detic", "e2e_c2.npz")["new_vocab_file"]
    np.save(tmp_path / "classes.npy", rows_CD)
    output = tmp_path / "other.pth"
    config = golden_config(tmp_path, "e2e_c2")
    assert convert(source, "--output", output, "--classes", tmp_path / "classes.npy") == 0
    before, after = read_weights(source), read_weights(output)
    expected = rows_CD.astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for name, value in after.tensors.items():
        if not name.endswith("zs_weight"):
            assert torch.equal(value, before.tensors[name])
            continue
        assert value.shape == (rows_CD.shape[1], len(rows_CD) + 1)
        np.testing.assert_allclose(value[:, :-1].numpy(), expected.T, atol=1e-6)
        assert not value[:, -1].any()
    left_out = before.tensors.keys() - after.tensors.keys()
    assert left_out
    assert all(name.endswith("freq_weight") for name in left_out)
    assert after.vocabulary is not None
    assert len(Vocabulary.from_state_dict(after.vocabulary)) == len(rows_CD)
    assert convert(output, "--check", config, "MODEL.ROI_HEADS.NUM_CLASSES", len(rows_CD)) == 0


@pytest.mark.golden
def test_a_golden_checkpoint_covers_a_model_of_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_CD = torch.from_numpy(golden_arrays("detic", "e2e_c2.npz")["new_vocab_file"])
    names = [f"thing {row}" for row in range(len(rows_CD))]
    Vocabulary.from_embeddings(names, rows_CD, "").save(tmp_path / "classes.npz")
    source = golden_root() / "detic" / "e2e_c2_model.pth"
    config = golden_config(tmp_path, "e2e_c2")
    classes = ["MODEL.VOCABULARY", tmp_path / "classes.npz"]
    assert convert(source, "--check", config, *classes) == 0
    shown = capsys.readouterr().out
    columns = [f"  roi_heads.box_predictor.{stage}.cls_score.zs_weight\n" for stage in range(3)]
    assert all(line in shown.split("from the configured vocabulary")[1] for line in columns)


NAMES = [
    "backbone.conv.weight",
    *(
        f"roi_heads.box_predictor.{stage}.{part}"
        for stage in range(3)
        for part in ("freq_weight", "cls_score.linear.weight", "cls_score.zs_weight")
    ),
]


def test_a_training_checkpoint_is_published_without_its_training_state(tmp_path: Path) -> None:
    tensors = made_detector(NAMES)
    vocabulary = Vocabulary.from_embeddings(["cat", "dog", "owl"], torch.randn(3, 4), "clip")
    state = {
        "model": tensors,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}},
        "iteration": 9,
        "vocabulary": vocabulary.state_dict(),
    }
    save_tensors_atomic(state, tmp_path / "model_final.pth")
    output = tmp_path / "published.pth"
    assert convert(tmp_path / "model_final.pth", "--output", output) == 0
    content = load_tensors(output)
    assert content.keys() == {"model", "vocabulary"}
    assert same(content["model"], tensors)
    assert Vocabulary.from_state_dict(content["vocabulary"]) == vocabulary
    # one copy of the columns that all stages share
    columns = [content["model"][name] for name in NAMES if name.endswith("zs_weight")]
    assert len({column.data_ptr() for column in columns}) == 1


def test_classes_can_be_left_out(tmp_path: Path) -> None:
    save_tensors_atomic({"model": made_detector(NAMES)}, tmp_path / "all.pth")
    output = tmp_path / "some.pth"
    assert convert(tmp_path / "all.pth", "--output", output, "--classes", "drop") == 0
    kept = [name for name in NAMES if not name.endswith(("zs_weight", "freq_weight"))]
    assert sorted(load_tensors(output)["model"]) == sorted(kept)


def test_classes_can_be_put_back_with_their_frequencies(tmp_path: Path) -> None:
    names = [name for name in NAMES if not name.endswith(("zs_weight", "freq_weight"))]
    save_tensors_atomic({"model": made_detector(names)}, tmp_path / "some.pth")
    vocabulary = Vocabulary.from_embeddings(["cat", "dog"], torch.randn(2, 4), "clip")
    vocabulary.save(tmp_path / "classes.npz")
    counts = [{"id": 7, "image_count": 9}, {"id": 3, "image_count": 4}]
    (tmp_path / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    words = ["--classes", tmp_path / "classes.npz", "--frequencies", tmp_path / "counts.json"]
    assert convert(tmp_path / "some.pth", "--output", tmp_path / "all.pth", *words) == 0
    stored = read_weights(tmp_path / "all.pth")
    assert set(stored.tensors) == set(NAMES)
    for stage in range(3):
        weight_C = stored.tensors[f"roi_heads.box_predictor.{stage}.freq_weight"]
        assert weight_C.tolist() == [2.0, 3.0]  # square roots, by ascending id
    assert stored.vocabulary is not None
    assert Vocabulary.from_state_dict(stored.vocabulary) == vocabulary


def test_columns_that_were_not_normalised_stay_so(tmp_path: Path) -> None:
    tensors = made_detector(NAMES)
    for name in NAMES:
        if name.endswith("zs_weight"):
            tensors[name] = tensors[name] * 7
    save_tensors_atomic({"model": tensors}, tmp_path / "plain.pth")
    emb_CD = torch.randn(2, 4)
    Vocabulary.from_embeddings(["cat", "dog"], emb_CD, "clip").save(tmp_path / "classes.npz")
    output = tmp_path / "other.pth"
    convert(tmp_path / "plain.pth", "--output", output, "--classes", tmp_path / "classes.npz")
    columns = load_tensors(output)["model"]["roi_heads.box_predictor.0.cls_score.zs_weight"]
    assert torch.equal(columns[:, :2], emb_CD.t())


class TinyDetector(nn.Module):
    """A backbone below a prefix, and a head."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.backbone = nn.ModuleDict({"bottom_up": body})
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize("format_", ["pth", "pkl"])
def test_third_party_weights_become_a_backbone_for_both_projects(
    tmp_path: Path, format_: str
) -> None:
    body = TinyDetector().backbone["bottom_up"].state_dict()
    wrapped = {f"module.{name}": value for name, value in body.items()}
    wrapped["module.fc.weight"] = torch.zeros(5, 4)
    state = {"state_dict": wrapped, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "net.pth.tar")
    assert convert(tmp_path / "net.pth.tar", "--format", format_) == 0
    output = tmp_path / f"net.pth.{format_}"
    ours, theirs = TinyDetector(), TinyDetector()
    report = load_model_weights(ours, output)
    assert report.backbone == "backbone.bottom_up."
    DetectionCheckpointer(theirs).load(str(output))
    for model in (ours, theirs):
        found = model.backbone["bottom_up"].state_dict()
        assert same(found, body)


def test_the_output_beside_the_input_never_is_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pth"
    torch.save({"state_dict": {"conv.weight": torch.ones(2)}}, path)
    assert convert(path, "--format", "pth") == 0
    assert load_tensors(tmp_path / "net_converted.pth") == {
        "model": {"conv.weight": pytest.approx(torch.ones(2))},
        "matching_heuristics": True,
    }
    before = path.read_bytes()
    assert convert(path, "--output", path) == 1
    assert "would be overwritten" in last_line(capsys)
    assert path.read_bytes() == before


def test_the_kind_can_be_said(tmp_path: Path) -> None:
    torch.save({"model": {"transformer.weight": torch.ones(2)}}, tmp_path / "net.pth")
    output = tmp_path / "out.pth"
    convert(tmp_path / "net.pth", "--output", output, "--kind", "detector")
    assert "matching_heuristics" not in load_tensors(output)


def test_half_precision_survives_where_the_format_has_it(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.5, 2.25], dtype=torch.bfloat16), "b": torch.ones(1).half()}
    write_weights(ExportedWeights(tensors), tmp_path / "w.pkl")
    found = read_weights(tmp_path / "w.pkl").tensors
    assert {name: value.dtype for name, value in found.items()} == {
        "a": torch.float32,
        "b": torch.float16,
    }
    assert found["a"].tolist() == [1.5, 2.25]
    write_weights(ExportedWeights(tensors), tmp_path / "w.safetensors")
    assert same(dict(read_weights(tmp_path / "w.safetensors").tensors), tensors)


def _evil() -> bytes:
    return pickle.dumps({"model": {"x": print}})


def _write_detector(path: Path) -> None:
    torch.save({"model": made_detector(NAMES)}, path)


def _write_backbone(path: Path) -> None:
    torch.save({"model": {"conv.weight": torch.ones(1)}}, path)


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (lambda path: None, "--format pkl", "no such file"),
        (lambda path: path.write_bytes(_evil()), "--format pkl", "refused: its pickle asks for"),
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "--format pkl", "truncated"),
        (_write_backbone, "--format pkl --classes classes.npz", "no zero-shot classifier"),
        (
            _write_detector,
            "--format pkl --classes classes.npz",
            "of width 5, the classifier's is 4",
        ),
        (_write_detector, "--format pkl --classes cat,dog", "has no embeddings"),
        (_write_detector, "--output nowhere/out.pth", "cannot be written"),
        (_write_detector, "--output nowhere/out.pkl", "cannot be written"),
        (_write_detector, "--output out.onnx", "cannot write .onnx"),
        (_write_detector, "--check none.yaml", "no such file"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Any,
    words: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary.from_embeddings(["cat", "dog"], torch.randn(2, 5), "clip")
    vocabulary.save(tmp_path / "classes.npz")
    prepare(tmp_path / "in.pth")
    before = sorted(tmp_path.iterdir())
    assert convert(tmp_path / "in.pth", *words.split()) == 1
    assert message in last_line(capsys)
    assert sorted(tmp_path.iterdir()) == before  # no part of an output


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--counters", "drop"],
        ["--format", "pkl", "--output", "x.pkl"],
        ["--format", "pkl", "--frequencies", "x.json"],
        ["--format", "pkl", "SOLVER.BASE_LR", "1"],
        ["--format", "onnx"],
    ],
)
def test_wrong_usage_ends_with_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        convert(Path("x.pth"), *words)
    assert ended.value.code == 2


def test_the_tool_runs_by_itself(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.ones(2)}}, tmp_path / "net.pth")
    tool = [sys.executable, "tools/convert_weights.py", "--path", str(tmp_path / "net.pth")]
    done = subprocess.run(
        [*tool, "--format", "pkl"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'net.pkl'}: 1 tensors of a backbone\n"
    with (tmp_path / "net.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    assert content["__author__"] == "third_party"
    assert content["model"]["conv.weight"].tolist() == [1.0, 1.0]
