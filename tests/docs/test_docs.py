"""The documentation is current: generated pages, links, and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import generate_config_docs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.md")])


def test_configuration_page_is_current() -> None:
    current = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert current == generate_config_docs.render(), "run python tools/generate_config_docs.py"


def test_every_key_has_a_meaning() -> None:
    for module, keys in generate_config_docs.collect().items():
        for name, _, comment in keys:
            assert comment, f"{module}: {name} has no comment"


def test_all_comment_lines_right_above_a_key_are_its_meaning(tmp_path: Path) -> None:
    source = tmp_path / "config.py"
    source.write_text(
        "    # A group of keys\n"
        "\n"
        "    # steps until it stands still; 0 = the\n"
        "    # whole run\n"
        '    add_default(node, "STEPS", 0)\n'
        "    # another group\n"
        '    add_default(node, "SIDE", 7)  # pixels\n'
        '    add_default(node, "BARE", 7)\n'
    )
    meanings = [generate_config_docs._comment(str(source), line) for line in (5, 7, 8)]
    assert meanings == ["steps until it stands still; 0 = the whole run", "pixels", ""]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for script in re.findall(r"\b(tools/[\w/]+\.(?:py|sh))\b", text):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"
    for config in re.findall(r"--config-file (configs/[\w./-]+\.yaml)", text):
        assert (ROOT / config).is_file(), f"{page.name} names {config}"
