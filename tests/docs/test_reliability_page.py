"""Every one of the forty cases has a test and a row that names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = set(range(1, 41))


def fault_tests() -> set[str]:
    """Names of the test functions in tests/faults."""
    names: set[str] = set()
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
    return names


def case_of(name: str) -> int:
    match = re.match(r"test_case_(\d\d)_", name)
    assert match, f"{name} has no number"
    return int(match[1])


def rows() -> list[list[str]]:
    """Cells of the table of cases."""
    lines = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if re.match(r"\| \d+ \| ", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in cells if len(row) == 5]


def test_every_case_has_a_test() -> None:
    assert {case_of(name) for name in fault_tests()} == CASES


def test_every_case_has_a_row_that_names_a_test_of_it() -> None:
    assert [int(row[0]) for row in rows()] == sorted(CASES)
    known = fault_tests()
    for number, fault, detectron2, ours, test in rows():
        name = test.strip("`")
        assert name in known, name
        assert case_of(name) == int(number)
        assert all((fault, detectron2, ours)), f"case {number} has an empty cell"
