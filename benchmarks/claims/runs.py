"""Steps of an experiment: the project's own commands, skipped where they are finished."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_common.atomic_file import writing
from ext_common.errors import ExtError

ROOT = Path(__file__).resolve().parents[2]


class StepError(ExtError):
    """A command of an experiment failed."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: for the progress lines, and name of the log file; unique in the experiment.
        tool: module in ``tools``, such as ``train_net``.
        words: its arguments.
        makes: files that exist when it is finished; it is not run again then.
        package: of the module, where it is not ``tools``.
    """

    title: str
    tool: str
    words: tuple[str, ...]
    makes: tuple[Path, ...]
    package: str = "tools"

    @property
    def program(self) -> list[str]:
        """What comes behind ``python``, seen from the repository's root."""
        if self.package == "tools":
            return [f"tools/{self.tool}.py"]
        return ["-m", f"{self.package}.{self.tool}"]

    def is_finished(self) -> bool:
        """Whether everything that it makes is there."""
        return all(path.is_file() for path in self.makes)


def training(
    title: str, config: str, folder: Path, opts: Sequence[object], makes: Sequence[str]
) -> Step:
    """A run of ``tools/train_net.py``; a stopped one goes on from its newest checkpoint.

    Args:
        title: of the step.
        config: file under ``configs``.
        folder: ``OUTPUT_DIR``.
        opts: KEY VALUE pairs.
        makes: names of files in ``folder`` that a finished run has.
    """
    begun = (folder / "last_checkpoint").is_file()
    words = ["--config-file", str(ROOT / "configs" / config)]
    words += ["--resume" if begun else "--overwrite"]
    words += ["OUTPUT_DIR", str(folder), *map(str, opts)]
    return Step(title, "train_net", tuple(words), tuple(folder / name for name in makes))


class Runner:
    """Runs chains of steps, several chains side by side, and says how far it is.

    Args:
        logs: folder for what the commands print.
        jobs: chains at a time, each in processes of one thread; 0 = all in this process, one after
            the other (for tests: saves the start of each process).
        total: steps in all, for the progress lines.
    """

    def __init__(self, logs: Path, jobs: int, total: int) -> None:
        self._logs = logs
        self._jobs = jobs
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def run_chains(self, chains: Sequence[Sequence[Step]]) -> None:
        """Run all; the steps of a chain in their order.

        Raises:
            StepError: of the first chain that failed; the others are finished first.
        """
        with ThreadPoolExecutor(max_workers=max(1, self._jobs)) as pool:
            futures = [pool.submit(self._run_chain, chain) for chain in chains]
        for future in futures:
            future.result()

    def _run_chain(self, chain: Sequence[Step]) -> None:
        for step in chain:
            if step.is_finished():
                self._say(f"{step.title}: finished before")
                continue
            print(f"$ python {shlex.join([*step.program, *step.words])}", flush=True)
            code, where = self._run_here(step) if self._jobs == 0 else self._run_process(step)
            if code != 0 or not step.is_finished():
                raise StepError(f"{step.title} ended with exit code {code}", fix=f"see {where}")
            self._say(step.title)

    def _run_process(self, step: Step) -> tuple[int, str]:
        """Exit code, and where the output is."""
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"{step.title.replace(' ', '-')}.log"
        command = [sys.executable, *step.program, *step.words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with path.open("w", encoding="utf-8") as log:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
            )
        return done.returncode, str(path)

    def _run_here(self, step: Step) -> tuple[int, str]:
        code: int = importlib.import_module(f"{step.package}.{step.tool}").main(list(step.words))
        return code, "the lines above"

    def _say(self, what: str) -> None:
        with self._lock:
            self._done += 1
            print(f"[{self._done}/{self._total}] {what}", flush=True)


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what finished runs of a folder were made with, or compare with what is there.

    Raises:
        StepError: the folder's runs were made with other settings.
    """
    now = json.loads(json.dumps(dict(settings)))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write((json.dumps(now, indent=1) + "\n").encode())
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if changed:
        raise StepError(
            f"its runs were made with other settings: {', '.join(changed)}",
            where=str(path),
            fix="choose another --output, or give the same options",
        )
