"""Which stored tensor goes where in a model, and what stays uncovered.

No file is read and no model is changed here: names and shapes in, a :class:`LoadReport` out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import Tensor

# Named after what the model computes from its configuration; old and new files differ in them.
_BENIGN_ENDINGS = ("num_batches_tracked", "pixel_mean", "pixel_std")
_BENIGN_PARTS = ("anchor_generator.cell_anchors",)
# Made from the class list, which the configuration decides about.
_VOCABULARY_ENDINGS = ("zs_weight", "freq_weight")
# What classification weights have besides the body that detectors take from them.
_CLASSIFIER_PATTERNS = (
    "fc.*",
    "fc1000.*",
    "stem.fc.*",
    "linear.*",
    "head.*",
    "classifier.*",
    "norm.weight",
    "norm.bias",
    "stem.conv1.bias",
    "conv1.bias",
    "*.attn_mask",
)
_RUNNING_STATISTICS = ("running_mean", "running_var")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """How a file covers a model. Every name is of the model, but ``unexpected`` is of the file.

    Args:
        source: the file.
        loaded: tensors of the model that the file gives.
        missing: tensors of the model that it does not give.
        unexpected: tensors of the file that have no place.
        mis_shaped: ``(name, shape in the file, shape in the model)``.
        non_finite: loaded tensors that hold NaN or infinity.
        kept: class-list tensors left as the model's own vocabulary made them.
        permitted: uncovered names of any kind that the caller's patterns allow.
        backbone: prefix in the model where a file of backbone weights went; None for a file with
            the model's own names.
        vocabulary: the vocabulary recorded in the file, as ``Vocabulary.state_dict`` gives it.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mis_shaped: tuple[tuple[str, Shape, Shape], ...] = ()
    non_finite: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    backbone: str | None = None
    vocabulary: Mapping[str, object] | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether nothing is uncovered but what is known to be harmless or was permitted."""
        return not (self.missing or self.unexpected or self.mis_shaped or self.non_finite)

    def problems(self, most: int = 4) -> str:
        """What is uncovered in one line, with the first ``most`` names of each kind."""
        shapes = [f"{name} {list(a)} for {list(b)}" for name, a, b in self.mis_shaped]
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", shapes),
            ("not finite", self.non_finite),
        )
        return "; ".join(
            f"{len(names)} {kind}: {_some(names, most)}" for kind, names in kinds if names
        )


def match_weights(
    stored: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    *,
    by_suffix: bool,
    keep_vocabulary: bool = False,
    without_statistics: bool = False,
) -> tuple[LoadReport, dict[str, str]]:
    """Pair a file's tensors with a model's.

    Args:
        stored: the file's tensors.
        model: the model's ``state_dict(keep_vars=True)``; a parameter with two names is covered by
            either.
        by_suffix: the file holds a backbone under shorter names (``res2.0.conv1.weight`` for
            ``backbone.bottom_up.res2.0.conv1.weight``). Then the part of the model that they name
            must be covered, the rest of the model need not be, and a classifier may be left over.
        keep_vocabulary: the model has its own class list: tensors made from it are not taken from
            the file.
        without_statistics: the file's batch norms are folded into weight and bias (Caffe2).

    Returns:
        The report, and ``name in the model -> name in the file`` of what can be loaded.
    """
    if by_suffix:
        pairs, backbone = pair_by_suffix(stored, model)
    else:
        pairs, backbone = {name: name for name in model if name in stored}, None
    kept = [name for name in model if keep_vocabulary and _is_vocabulary(name)]
    used = set(pairs.values())
    for name in kept:
        pairs.pop(name, None)
    mis_shaped = [
        (name, tuple(stored[source].shape), tuple(model[name].shape))
        for name, source in pairs.items()
        if stored[source].shape != model[name].shape
    ]
    for name, _, _ in mis_shaped:
        del pairs[name]
    settled = {*pairs, *kept, *(name for name, _, _ in mis_shaped)}
    missing = [
        name
        for name in _without_aliases(model, settled, pairs)
        if (backbone is None or name.startswith(backbone))
        and not _is_benign(name)
        and not name.endswith("freq_weight")
        and not (without_statistics and name.endswith(_RUNNING_STATISTICS))
    ]
    unexpected = [
        name
        for name in stored
        if name not in used
        and not _is_benign(name)
        and not _is_vocabulary_leftover(name, keep_vocabulary)
        and not (backbone is not None and matches(name, _CLASSIFIER_PATTERNS))
    ]
    report = LoadReport(
        source="",
        loaded=tuple(pairs),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mis_shaped=tuple(entry for entry in mis_shaped if not _is_benign(entry[0])),
        non_finite=tuple(name for name in pairs if not _is_finite(stored[pairs[name]])),
        kept=tuple(kept),
        backbone=backbone,
    )
    return report, pairs


def permit(report: LoadReport, patterns: Sequence[str]) -> LoadReport:
    """Move what matches one of the patterns (``roi_heads.*``) to ``permitted``.

    NaN and infinity cannot be permitted.
    """
    names = [*report.missing, *report.unexpected, *(name for name, _, _ in report.mis_shaped)]
    permitted = {name for name in names if matches(name, patterns)}
    return replace(
        report,
        missing=tuple(name for name in report.missing if name not in permitted),
        unexpected=tuple(name for name in report.unexpected if name not in permitted),
        mis_shaped=tuple(entry for entry in report.mis_shaped if entry[0] not in permitted),
        permitted=tuple(name for name in names if name in permitted),
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns (``*`` stands for anything, dots included)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def pair_by_suffix(
    stored: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> tuple[dict[str, str], str]:
    """Pair names where the file's is the end of the model's, the longest such name first.

    This is detectron2's rule for files with ``matching_heuristics``. Where several names of the
    model end alike, the one below the prefix that most pairs share is meant; elsewhere a name must
    be the only one, and have the right shape (the last stage in the head of a C4 model).

    Returns:
        ``name in the model -> name in the file``, and the shared prefix (with its dot).
    """
    claims: dict[str, str] = {}
    for name in model:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        source = next((end for end in ends if end in stored), None)
        if source is not None:
            claims[name] = source
    prefixes = Counter(name[: -len(source)] for name, source in claims.items())
    shared = prefixes.most_common(1)[0][0] if prefixes else ""
    claimants = Counter(claims.values())
    pairs = {
        name: source
        for name, source in claims.items()
        if name == shared + source
        or (claimants[source] == 1 and stored[source].shape == model[name].shape)
    }
    return pairs, shared


def _without_aliases(
    model: Mapping[str, Tensor], settled: Collection[str], pairs: Collection[str]
) -> list[str]:
    """Names of the model that are neither settled nor another name of a loaded parameter."""
    loaded = {id(model[name]) for name in pairs}
    return [name for name in model if name not in settled and id(model[name]) not in loaded]


def _is_benign(name: str) -> bool:
    return name.endswith(_BENIGN_ENDINGS) or any(part in name for part in _BENIGN_PARTS)


def _is_vocabulary(name: str) -> bool:
    return name.endswith(_VOCABULARY_ENDINGS)


def _is_vocabulary_leftover(name: str, keep_vocabulary: bool) -> bool:
    """Class frequencies exist only while a federated loss is configured."""
    return name.endswith("freq_weight") or (keep_vocabulary and _is_vocabulary(name))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
