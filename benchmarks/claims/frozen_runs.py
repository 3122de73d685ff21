"""Which detectors benchmarks/claims/frozen.py trains, and with which keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ALL = 100
"""Percent: the whole detection set."""


@dataclass(frozen=True)
class Neck:
    """A detector.

    Attributes:
        title: in tables.
        config: file under ``configs/claims``.
    """

    title: str
    config: str


@dataclass(frozen=True)
class Method:
    """What happens to the backbone.

    Attributes:
        title: in tables.
        name: in folders.
        loads: it starts from the classification.
        rate: learning rate of the backbone over that of the rest; chosen on a seed that is not
            reported.
        opts: KEY VALUE pairs.
    """

    title: str
    name: str
    loads: bool
    rate: float
    opts: tuple[str, ...] = ()


FPN = Neck("FPN", "Frozen_FPN.yaml")
CASCADE = Neck("NAS-FPN + Cascade", "Frozen_NASFPN-Cascade.yaml")
NECKS = (FPN, CASCADE)

_FREEZE = ("MODEL.BACKBONE_FREEZE.POLICY", "trunk")
_ADAPT = ("MODEL.BACKBONE.NAME", "build_adapted_backbone")
_ADAPT += ("MODEL.ADAPTERS.BACKBONE", "build_pyramid_backbone")
SCRATCH = Method("from scratch", "scratch", False, 1.0)
FINETUNED = Method("fine-tuned", "finetuned", True, 0.3)
FROZEN = Method("frozen", "frozen", True, 1.0, _FREEZE)
ADAPTERS = Method("frozen + adapters", "adapters", True, 1.0, (*_FREEZE, *_ADAPT))
METHODS = (SCRATCH, FINETUNED, FROZEN, ADAPTERS)


@dataclass(frozen=True)
class DetectorRun:
    """One training.

    Attributes:
        neck, method: which detector, and what happens to its backbone.
        percent: of the detection set.
        paste: with Copy-Paste.
    """

    neck: Neck
    method: Method
    percent: int = ALL
    paste: bool = False

    @property
    def name(self) -> str:
        """For folders and progress lines; unique in a seed."""
        neck = self.neck.config.removeprefix("Frozen_").removesuffix(".yaml")
        less = "" if self.percent == ALL else f"-{self.percent}pct"
        return f"{neck}-{self.method.name}{less}{'-copypaste' if self.paste else ''}"

    def opts(self, trunk: Path) -> list[object]:
        """KEY VALUE pairs; ``trunk`` is the file of the classification's backbone."""
        opts: list[object] = ["SOLVER.CUSTOM_MULTIPLIER", self.method.rate, *self.method.opts]
        if self.method.loads:
            opts += ["MODEL.BACKBONE_FREEZE.WEIGHTS", trunk]
        if self.paste:
            opts += ["DATALOADER.SAMPLER_TRAIN", "CopyPasteTrainingSampler"]
        return opts


def runs_of_a_seed(percent: int) -> list[DetectorRun]:
    """Methods x necks, then fine-tuned and frozen with less data and with Copy-Paste.

    Args:
        percent: of the detection set in the runs with less data.
    """
    runs = [DetectorRun(neck, method) for neck in NECKS for method in METHODS]
    for method in (FINETUNED, FROZEN):
        runs += [DetectorRun(CASCADE, method, percent), DetectorRun(CASCADE, method, ALL, True)]
    return runs
