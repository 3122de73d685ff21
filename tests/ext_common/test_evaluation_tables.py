"""Results as text."""

from __future__ import annotations

import math

from ext_common.evaluation.tables import cell, format_results, results_table

BEFORE = {
    "bbox": {
        "AP": 31.26,
        "AP50": 50.0,
        "APr": math.nan,
        "AP-group-base": 40.0,
        "AP-group-novel": 2.04,
        "AP50-group-base": 60.0,
        "AP50-group-novel": 8.0,
        "AP-red square": 40.0,
        "AP-t-shirt": math.nan,
    },
    "segm": {"AP": 29.0},
}
AFTER = {"bbox": {"AP": 41.0, "AP50": 66.6, "AP50-group-novel": 43.0}}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("-")]


def test_overall_group_and_class_tables():
    overall, groups, classes = format_results(BEFORE).split("\n\n")
    assert rows(overall) == [
        ["task", "AP", "AP50", "APr"],
        ["bbox", "31.3", "50.0", "-"],
        ["segm", "29.0"],
    ]
    assert rows(groups) == [
        ["task", "group", "AP", "AP50"],
        ["bbox", "base", "40.0", "60.0"],
        ["bbox", "novel", "2.0", "8.0"],
    ]
    assert "red square" in classes
    assert "40.0" in classes
    assert rows(classes)[-1][-2:] == ["t-shirt", "-"]


def test_several_datasets():
    text = format_results({"val_a": BEFORE, "val_b": AFTER})
    assert text.startswith("val_a\n")
    assert "\n\nval_b\n" in text
    assert "43.0" in text


def test_no_results():
    assert format_results({}) == "no results"


def test_single_classes_can_be_left_out() -> None:
    several = {"val_a": BEFORE, "val_b": AFTER}
    short, long = format_results(several, classes=False), format_results(several)
    assert short == "\n\n".join(part for part in long.split("\n\n") if " class " not in part)
    assert " class " in long


def test_before_and_after():
    lines = [
        [field.strip() for field in line.strip("|").split("|")]
        for line in results_table({"boxes only": BEFORE, "Detic": AFTER}).splitlines()
    ]
    assert lines[0] == ["", "AP", "AP50", "AP base", "AP50 base", "AP novel", "AP50 novel"]
    assert lines[2] == ["boxes only", "31.3", "50.0", "40.0", "60.0", "2.0", "8.0"]
    assert lines[3] == ["Detic", "41.0", "66.6", "-", "-", "-", "43.0"]


def test_chosen_columns_and_task():
    table = results_table({"one": BEFORE}, task="segm", metrics=["AP"])
    assert [field.strip() for field in table.splitlines()[2].strip("|").split("|")] == [
        "one",
        "29.0",
    ]


def test_cells():
    assert [cell(12.345), cell(0.0), cell(math.nan)] == ["12.3", "0.0", "-"]
