"""The tools on a bad dataset: in this process, or in one of their own as a user meets them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.dist.tiny_training import TinyRun
from tools import prepare_data, train_net

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def own_logging() -> Iterator[None]:
    """The training tool sets logging up for a whole process, which is this one here."""
    names = ("fvcore", "detectron2", "ext_common", *train_net.packages.PACKAGES)
    before = {name: _state(logging.getLogger(name)) for name in names}
    try:
        yield
    finally:
        for name, (level, propagate, handlers) in before.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers


def _state(logger: logging.Logger) -> tuple[int, bool, list[logging.Handler]]:
    return logger.level, logger.propagate, list(logger.handlers)


def train(run: TinyRun, *words: str) -> int:
    """tools/train_net.py in this process, anew each time; returns its exit code."""
    with own_logging():
        output = ("OUTPUT_DIR", str(run.output))
        return train_net.main(
            ["--config-file", str(run.config_file), "--overwrite", *words, *output]
        )


def check(run: TinyRun, *words: str) -> int:
    """tools/prepare_data.py check on the run's dataset, in this process."""
    files = ["--json", str(run.data / "instances.json"), "--images", str(run.data / "images")]
    return prepare_data.main(["check", *files, "--jobs", "1", *words])


def as_user(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A tool in a process of its own, which must end within five minutes, on a busy machine too."""
    return subprocess.run(
        [sys.executable, f"tools/{tool}.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )


def annotations(run: TinyRun) -> dict[str, Any]:
    """The run's annotation file."""
    content: dict[str, Any] = json.loads((run.data / "instances.json").read_text())
    return content


def set_annotations(run: TinyRun, content: Any) -> None:
    """Write it anew."""
    (run.data / "instances.json").write_text(json.dumps(content, ensure_ascii=False))


def last_metrics(run: TinyRun) -> dict[str, Any]:
    """The last line of metrics.json."""
    lines = (run.output / "metrics.json").read_text().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def final_line(text: str) -> str:
    """The last line of what a tool wrote to stderr, which must hold no traceback."""
    lines = text.strip().splitlines()
    assert not [line for line in lines if line.startswith("Traceback")], text
    return lines[-1]
