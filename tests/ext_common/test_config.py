"""Configuration files: safe YAML, bases, unknown keys, wrong types, command-line pairs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from fvcore.common.registry import Registry
from hypothesis import given
from hypothesis import strategies as st

from ext_common import config as config_module
from ext_common.config import (
    add_common_config,
    add_default,
    add_node,
    get_config,
    load_config,
    validate_config,
)
from ext_common.errors import ConfigError
from ext_common.yaml_safe import read_yaml, read_yaml_with_base


def write(folder: Path, name: str = "a.yaml", text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


# --- one file ---------------------------------------------------------------------------------


def test_plain_values_are_read(tmp_path) -> None:
    text = "A: 1\nB: {C: [1, 2.5, x], D: true}\nE: null\n"
    expected = {"A": 1, "B": {"C": [1, 2.5, "x"], "D": True}, "E": None}
    assert read_yaml(write(tmp_path, text=text)) == expected
    assert read_yaml(write(tmp_path, text="")) == {}
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfA: 1\n")
    assert read_yaml(path) == {"A": 1}


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch hacked']",
        "!!python/name:os.system",
        "!!python/tuple [1, 2]",
        "!mine {a: 1}",
    ],
)
def test_object_tags_are_refused_and_run_nothing(tmp_path, monkeypatch, value) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text=f"A: 1\nB: {value}\n")
    message = refusal(read_yaml, path)
    assert str(path) in message
    assert "line 2" in message
    assert "object tags" in message
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("A: 1\nB: 2\nA: 3\n", "1 and 3"),
        ("S:\n  X: 1\n  'X': 2\n", "2 and 3"),
        ("{A: 1, A: 1}", "1 and 1"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(tmp_path, text, lines) -> None:
    path = write(tmp_path, text=text)
    message = refusal(read_yaml, path)
    assert f"given twice, in lines {lines}" in message
    assert str(path) in message


def test_merge_keys_may_be_overridden_however_they_are_nested(tmp_path) -> None:
    text = "A: &a {x: 1, z: 0}\nM: {B: &b {<<: *a, x: 2}}\nC: {<<: *b, y: 3}\n"
    content = read_yaml(write(tmp_path, text=text))
    assert content["M"]["B"] == {"x": 2, "z": 0}
    assert content["C"] == {"x": 2, "z": 0, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: [1, 2\n", "line 2"),
        ("A:\n\t- 1\n", "line 2"),
        ("- 1\n- 2\n", "expected KEY: VALUE lines, found a list"),
        ("just words", "found a str"),
        ("? [1, 2]\n: 3\n", "unhashable key"),
        ("A: 2024-13-01\n", "a value cannot be read.*put it in quotes"),
        ("A: !!int x\n", "a value cannot be read"),
        ("A: *nothing\n", "nothing"),
        ("A: \x00\n", "not valid YAML|cannot be read"),
        ("A: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_what_is_not_a_config_is_refused_with_the_file(tmp_path, text, message) -> None:
    path = write(tmp_path, text=text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_bytes_and_missing_files_are_refused(tmp_path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"A: \xe4\n")
    assert "not UTF-8" in refusal(read_yaml, path)
    assert "no such file" in refusal(read_yaml, tmp_path / "nowhere.yaml")
    assert "no such file" in refusal(read_yaml, tmp_path)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory, text) -> None:
    path = tmp_path_factory.mktemp("any") / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        content = read_yaml_with_base(path)
    except ConfigError:
        return
    assert isinstance(content, dict)


# --- bases ------------------------------------------------------------------------------------


def test_bases_are_relative_to_their_file_and_the_last_word_counts(tmp_path) -> None:
    write(tmp_path, "root.yaml", "A: 1\nS: {X: 1, Y: 1, Z: 1}\n")
    write(tmp_path, "sub/middle.yaml", "_BASE_: ../root.yaml\nS: {Y: 2, Z: 2}\n")
    leaf = write(tmp_path, "sub/deep/leaf.yaml", "_BASE_: ../middle.yaml\nS: {Z: 3}\nB: 4\n")
    assert read_yaml_with_base(leaf) == {"A": 1, "S": {"X": 1, "Y": 2, "Z": 3}, "B": 4}


def test_a_list_of_bases_is_merged_in_order(tmp_path) -> None:
    write(tmp_path, "one.yaml", "_BASE_: both.yaml\nA: 1\nS: {X: 1, Y: 1}\n")
    write(tmp_path, "two.yaml", "_BASE_: both.yaml\nB: 2\nS: {X: 2}\n")
    write(tmp_path, "both.yaml", "C: 0\nS: {W: 0}\n")
    path = write(tmp_path, text=f"_BASE_: [one.yaml, '{tmp_path / 'two.yaml'}']\nC: 3\n")
    assert read_yaml_with_base(path) == {"A": 1, "B": 2, "C": 3, "S": {"W": 0, "X": 2, "Y": 1}}


def test_a_cycle_is_named(tmp_path) -> None:
    one = write(tmp_path, "one.yaml", "_BASE_: two.yaml\n")
    write(tmp_path, "two.yaml", "_BASE_: [./one.yaml]\n")
    message = refusal(read_yaml_with_base, one)
    assert "comes back to itself" in message
    assert "one.yaml -> " in message
    assert "two.yaml -> " in message
    own = write(tmp_path, "own.yaml", "_BASE_: own.yaml\n")
    assert "comes back to itself" in refusal(read_yaml_with_base, own)


@pytest.mark.parametrize("base", ["5", "{a: b}", "null", "[a.yaml, 5]", "''", "[[x.yaml]]"])
def test_a_base_that_is_no_file_name_is_refused(tmp_path, base) -> None:
    message = refusal(read_yaml_with_base, write(tmp_path, text=f"_BASE_: {base}\n"))
    assert "give a file or a list of files" in message


def test_a_missing_base_is_named(tmp_path) -> None:
    path = write(tmp_path, text="_BASE_: nowhere.yaml\n")
    assert "nowhere.yaml: no such file" in refusal(read_yaml_with_base, path)


def test_a_block_over_a_value_is_refused(tmp_path) -> None:
    write(tmp_path, "base.yaml", "S: {X: 1}\n")
    path = write(tmp_path, text="_BASE_: base.yaml\nS: {X: {Y: 1}}\n")
    assert "S.X is a value in the base and a block here" in refusal(read_yaml_with_base, path)


def test_an_override_does_not_reach_other_uses_of_an_alias(tmp_path) -> None:
    write(tmp_path, "base.yaml", "A: &a {x: 1, s: {t: 1}}\nB: *a\n")
    path = write(tmp_path, text="_BASE_: base.yaml\nB: {x: 2, s: {t: 2}}\n")
    content = read_yaml_with_base(path)
    assert content["A"] == {"x": 1, "s": {"t": 1}}
    assert content["B"] == {"x": 2, "s": {"t": 2}}


# --- keys and types ---------------------------------------------------------------------------


def test_a_file_and_pairs_change_what_they_name_and_nothing_else(tmp_path) -> None:
    path = write(
        tmp_path, text="SOLVER: {BASE_LR: 1e-4, STEPS: [3, 4]}\nINPUT: {TRAIN_SIZE: 320}\n"
    )
    cfg = load_config(path, ["SOLVER.MAX_ITER", "7", "MODEL.VOCABULARY", "a cat,dog"])
    expected = get_config()
    expected.SOLVER.BASE_LR = 1e-4
    expected.SOLVER.STEPS = (3, 4)
    expected.SOLVER.MAX_ITER = 7
    expected.INPUT.TRAIN_SIZE = 320
    expected.MODEL.VOCABULARY = "a cat,dog"
    assert cfg == expected
    assert load_config() == get_config()


@pytest.mark.parametrize(
    "text", ['"traffic light", "cat"', "1,2", "12", "True", "{[1]}", "a cat", "it's", "(", ""]
)
def test_text_stays_text(tmp_path, text) -> None:
    assert text == load_config("", ["MODEL.VOCABULARY", text]).MODEL.VOCABULARY
    path = write(tmp_path, text="MODEL:\n  VOCABULARY: |-\n    " + text + "\n")
    assert text == load_config(path).MODEL.VOCABULARY


def test_quoted_text_loses_its_quotes_as_in_detectron2() -> None:
    assert load_config("", ["MODEL.WEIGHTS", "'x.pth'"]).MODEL.WEIGHTS == "x.pth"


def test_later_pairs_win() -> None:
    cfg = load_config("", ["SOLVER.MAX_ITER", "7", "SOLVER.STEPS", "3,4", "SOLVER.MAX_ITER", 8])
    assert cfg.SOLVER.MAX_ITER == 8
    assert cfg.SOLVER.STEPS == (3, 4)


def test_a_given_base_is_not_changed() -> None:
    base = get_config()
    cfg = load_config("", ["SOLVER.MAX_ITER", "7"], base=base)
    assert cfg.SOLVER.MAX_ITER == 7
    assert base.SOLVER.MAX_ITER == get_config().SOLVER.MAX_ITER != 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "SOLVER: {BASE_LRR: 0.1}",
            "unknown config key SOLVER.BASE_LRR .did you mean SOLVER.BASE_LR?",
        ),
        ("SOLVR: {BASE_LR: 0.1}", "unknown config key SOLVR.BASE_LR .did you mean SOLVER.BASE_LR?"),
        ("SOLVR: {BASE_LR: 0.1, STEPS: [1]}", "unknown config key SOLVR .did you mean SOLVER?"),
        ("TRAIN_SIZE: 5", "unknown config key TRAIN_SIZE .did you mean INPUT.TRAIN_SIZE?"),
        ("QQ: 5", "unknown config key QQ .docs/config.md"),
        ("1: 5", "unknown config key 1"),
        ("SOLVER: {MAX_ITER: 5, AMP: {ENABLE: true}}", "SOLVER.AMP.ENABLE .did you mean"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(tmp_path, text, message) -> None:
    path = write(tmp_path, text=text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER"),
        ("INPUT: {TRAIN_SIZE: [1, 2]}", "INPUT.TRAIN_SIZE"),
        ("SOLVER: 5", "SOLVER is a block, not 5"),
        ("SOLVER:", "SOLVER is a block, not None"),
        ("SOLVER: {MAX_ITER: {X: 1}}", "SOLVER.MAX_ITER is one value, not a block"),
        ("MODEL: {WEIGHTS: 2024-01-01}", "MODEL.WEIGHTS"),
    ],
)
def test_a_wrong_type_names_the_key_and_the_file(tmp_path, text, key) -> None:
    path = write(tmp_path, text=text)
    message = refusal(load_config, path)
    assert key in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER"], "KEY VALUE pairs expected, got 1 words"),
        (["SOLVER.MAX_ITER", 5, "X"], "got 3 words"),
        (["SOLVER.MAX_ITERS", "5"], "did you mean SOLVER.MAX_ITER?"),
        (["SOLVER.MAX_ITER", "five"], "SOLVER.MAX_ITER"),
        (["SOLVER", "{}"], "SOLVER is a block, not '{}'"),
        (["SOLVER.STEPS", "{[1]}"], "unhashable"),
        (["SOLVER.MAX_ITER.X", "5"], "SOLVER.MAX_ITER is one value, not a block"),
        (["", "5"], "unknown config key"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(opts, message) -> None:
    text = refusal(load_config, "", opts)
    assert message in text
    assert text.startswith("command line")


def test_dropped_and_renamed_keys_answer_for_themselves(tmp_path, caplog) -> None:
    base = get_config()
    base.register_deprecated_key("MODEL.GONE")
    base.register_deprecated_key("SOLVER.OLD")
    base.register_renamed_key("SOLVER.LR", "SOLVER.BASE_LR")
    path = write(tmp_path, text="MODEL: {GONE: {NUM_LAYERS: 34}}\nSOLVER: {OLD: 1}\n")
    with caplog.at_level(logging.WARNING):
        assert load_config(path, ["SOLVER.OLD", "2"], base=base) == base
    assert "MODEL.GONE" in caplog.text
    assert "SOLVER.OLD" in caplog.text
    renamed = write(tmp_path, "renamed.yaml", "SOLVER: {LR: 0.1}\n")
    with pytest.raises(ConfigError, match="renamed to SOLVER.BASE_LR"):
        load_config(renamed, base=base)
    with pytest.raises(ConfigError, match="renamed to SOLVER.BASE_LR"):
        load_config("", ["SOLVER.LR", "0.1"], base=base)


def test_keys_that_are_there_keep_their_values() -> None:
    cfg = get_cfg()
    cfg.INPUT.TRAIN_SIZE = 99
    add_common_config(cfg)
    add_common_config(cfg)
    assert cfg.INPUT.TRAIN_SIZE == 99
    node = add_node(cfg, "MINE")
    add_default(node, "A", 1)
    assert add_node(cfg, "MINE") is node
    assert isinstance(cfg.MINE, CfgNode)


def test_checks_run_in_order_and_know_whether_it_trains(monkeypatch) -> None:
    registry = Registry("TEST_CHECKS")
    calls = []
    registry._do_register("b", lambda cfg, training: calls.append(("b", training)))
    registry._do_register("a", lambda cfg, training: calls.append(("a", training)))
    monkeypatch.setattr(config_module, "CONFIG_CHECK_REGISTRY", registry)
    validate_config(get_config(), training=True)
    assert calls == [("a", True), ("b", True)]

    def fail(cfg: CfgNode, training: bool) -> None:
        raise ConfigError("cannot work")

    registry._do_register("c", fail)
    with pytest.raises(ConfigError, match="cannot work"):
        validate_config(get_config(), training=False)
