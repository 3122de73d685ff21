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
