"""Loading weights into a model, and the checkpoints of a training run.

A file must cover the model, unless the caller says by pattern what may stay uncovered; nothing is
loaded before that is known, so a refused file leaves the model as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ext_common.checkpoint_files import read_checkpoint, read_newest, write_checkpoint
from ext_common.errors import VocabularyError, WeightsError
from ext_common.stored_weights import StoredWeights, read_weights, unwrap
from ext_common.vocabulary import Vocabulary
from ext_common.weights_match import LoadReport, match_weights, matches, permit

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What can be saved and restored: optimizers, schedules, scalers, random generators."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take back what :meth:`state_dict` gave."""


@runtime_checkable
class TranslatesWeights(Protocol):
    """A model that knows files with other names than its own (CLIP's, for RegionCLIP).

    Optional: :func:`load_model_weights` asks for it before names are matched. Coverage is checked
    afterwards as for any file.
    """

    def translate_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors of a file under the model's names.

        Args:
            tensors: of the file, under its names.

        Returns:
            The same mapping where the file is not one of those. What has no place in the model
            stays in, so that it is reported, unless files of this kind always have it.
        """


def load_model_weights(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    allow_partial: Sequence[str] = (),
    unsafe: bool = False,
) -> LoadReport:
    """Load a weight file or checkpoint into a model, and check that it covers the model.

    Known differences are handled on purpose: ``num_batches_tracked`` of frozen batch norms and
    pixel statistics may be there or not; a model with its own vocabulary (``model.vocabulary`` with
    embeddings) keeps its class columns where the file's vocabulary is another one; a file of
    backbone weights (timm, torchvision, detectron2 ``.pkl``: no name is the model's own, or it says
    ``matching_heuristics``) must cover that backbone only. A model that knows files with other
    names translates them first (:class:`TranslatesWeights`).

    Args:
        model: may be wrapped in DistributedDataParallel.
        path: a local file; see :func:`ext_common.weights_io.load_tensors`.
        strict: uncovered names are an error; otherwise a warning.
        allow_partial: patterns of names that may be uncovered, such as ``roi_heads.mask_head.*``.
        unsafe: run the code in the file's pickle (``--unsafe-load``).

    Returns:
        What was loaded and what was not. The model is unchanged if an error is raised.

    Raises:
        WeightsError: the file cannot be read, or does not cover the model.
    """
    stored = read_weights(path, allow_unsafe=unsafe)
    model = unwrap_model(model)
    if isinstance(model, TranslatesWeights):
        stored = replace(stored, tensors=model.translate_weights(stored.tensors))
    report = _load_stored(model, stored, str(path), strict, allow_partial)
    logger.info("%s: %s", path, _summary(report))
    own = model.state_dict(keep_vars=True)
    left = [name for name in report.permitted if name in own]
    parts = [p for p in _permitted(model, allow_partial) if any(matches(n, [p]) for n in left)]
    if parts:
        # right before a training, and wrong scores without an error where nothing trains them
        logger.warning("not taken from %s, kept as built: %s", path, ", ".join(parts))
    return report


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel or DataParallel."""
    inner: nn.Module = model
    while isinstance(inner, DistributedDataParallel | DataParallel):
        inner = inner.module
    return inner


class Checkpointer:
    """Saves a run's state atomically and finds the newest whole one again.

    Fits detectron2's ``PeriodicCheckpointer`` hook. All processes of the run must call
    :meth:`save` and :meth:`resume`; the main process writes.

    Args:
        model: saved under ``model``, with its ``vocabulary`` if it has one.
        folder: of the run; made when something is saved.
        parts: saved under their names from the main process, the same in all processes.
        process_parts: differ between processes (random generators); all of them are saved.
        conditions: saved like ``parts``; restored before all else, so that they can refuse.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | Path,
        *,
        parts: Mapping[str, Stateful] | None = None,
        process_parts: Mapping[str, Stateful] | None = None,
        conditions: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.model = unwrap_model(model)
        self.folder = Path(folder)
        self.parts = dict(parts or {})
        self.process_parts = dict(process_parts or {})
        self.conditions = dict(conditions or {})
        self.path_manager = PathManager  # PeriodicCheckpointer asks for it
        self._last_saved = ""

    def save(self, name: str, **extra: Any) -> None:
        """Write ``<folder>/<name>.pth``.

        Args:
            name: without suffix.
            extra: plain values to keep with it; ``iteration``, the last finished one, is needed.

        Raises:
            WeightsError: it cannot be written.
        """
        own = {key: part.state_dict() for key, part in self.process_parts.items()}
        everyones = comm.gather(own)
        self._last_saved = str(self.folder / f"{name}.pth")
        if not comm.is_main_process():
            return
        state: dict[str, Any] = {"model": self.model.state_dict()}
        vocabulary = _vocabulary(self.model)
        if vocabulary is not None:
            state["vocabulary"] = vocabulary.state_dict()
        parts = {**self.conditions, **self.parts}
        state.update({key: part.state_dict() for key, part in parts.items()})
        state.update({key: [states[key] for states in everyones] for key in self.process_parts})
        state.update(extra)
        self.folder.mkdir(parents=True, exist_ok=True)
        logger.info("Saving checkpoint to %s", self._last_saved)
        write_checkpoint(state, Path(self._last_saved))

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint that this object saved last; empty if none."""
        return self._last_saved

    def resume(self, *, skip: Sequence[str] = ()) -> dict[str, Any] | None:
        """Restore model and parts from the newest whole checkpoint in the folder.

        Args:
            skip: names of parts to leave as they are.

        Returns:
            What else was saved (``iteration``), or None where there is no checkpoint.

        Raises:
            WeightsError: only damaged checkpoints, or one of another model or optimizer. Another
                call is possible afterwards.
            ExtError: a condition does not hold; nothing is changed then.
        """
        path, state = self._read_same_checkpoint()
        if path is None or state is None:
            return None
        for key, condition in self.conditions.items():
            if key in state:
                _restore(condition, state[key], f"{path}: {key}")
        logger.info("Resuming from %s", path)
        _load_stored(self.model, unwrap(state, str(path)), str(path), strict=True)
        for key, part in self.parts.items():
            if key in state and key not in skip:
                _restore(part, state[key], f"{path}: {key}")
            elif key not in skip:
                logger.warning("%s has no %r: it starts anew", path, key)
        for key, part in self.process_parts.items():
            if key not in skip:
                self._restore_own(part, state.get(key, []), key)
        taken = {"model", "vocabulary", *self.conditions, *self.parts, *self.process_parts}
        return {key: value for key, value in state.items() if key not in taken}

    def _read_same_checkpoint(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The main process chooses, the others read what it chose."""
        found, error = None, None
        if comm.is_main_process():
            try:
                found = read_newest(self.folder)
            except WeightsError as problem:
                error = problem
        path, error = comm.all_gather((found and found[0], error))[0]
        if error is not None:
            raise error
        if path is None:
            return None, None
        return path, found[1] if found is not None else read_checkpoint(path)

    @staticmethod
    def _restore_own(part: Stateful, states: Sequence[dict[str, Any]], key: str) -> None:
        if len(states) == comm.get_world_size():
            _restore(part, states[comm.get_rank()], key)
        else:
            logger.warning(
                "%s was saved by %d processes, now there are %d: it starts anew",
                key,
                len(states),
                comm.get_world_size(),
            )


def _restore(part: Stateful, state: dict[str, Any], where: str) -> None:
    try:
        part.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"cannot be restored: {error}",
            where=where,
            fix="resume with the configuration that the run was started with",
        ) from error


def _load_stored(
    model: nn.Module,
    stored: StoredWeights,
    source: str,
    strict: bool,
    allow_partial: Sequence[str] = (),
) -> LoadReport:
    own = model.state_dict(keep_vars=True)
    by_suffix = stored.by_suffix or not any(name in own for name in stored.tensors)
    report, pairs = match_weights(
        stored.tensors,
        own,
        by_suffix=by_suffix,
        keep_vocabulary=_keeps_vocabulary(model, stored, source, allow_partial),
        without_statistics=stored.caffe2
        and not any(name.endswith("running_mean") for name in stored.tensors),
    )
    report = permit(report, _permitted(model, allow_partial))
    report = replace(report, source=source, vocabulary=stored.vocabulary)
    _check(report, strict)
    # complete by construction, so no module fills gaps with its own idea of a default
    full = model.state_dict()
    for name, stored_name in pairs.items():
        full[name] = stored.tensors[stored_name]
    model.load_state_dict(full)
    return report


def _permitted(model: nn.Module, allow_partial: Sequence[str]) -> tuple[str, ...]:
    """Patterns of what may stay uncovered.

    The model's own name what it fills from elsewhere, such as a text tower with a file of its own.
    """
    return (*allow_partial, *getattr(model, "optional_weights", ()))


def _keeps_vocabulary(
    model: nn.Module, stored: StoredWeights, source: str, allow_partial: Sequence[str]
) -> bool:
    """Whether the model's class columns come from a vocabulary that the file does not have.

    Raises:
        VocabularyError: the file's head was trained on the embeddings of another text encoder.
    """
    own = _vocabulary(model)
    if own is None or own.embeddings_CD is None:
        return False
    if stored.vocabulary is None:
        return True
    theirs = Vocabulary.from_state_dict(stored.vocabulary)
    encoders = (own.encoder_id, theirs.encoder_id)
    if all(encoders) and len(set(encoders)) == 2 and not matches("zs_weight", allow_partial):
        raise VocabularyError(
            f"its classifier was trained with the text encoder {theirs.encoder_id}, "
            f"the configuration has {own.encoder_id}",
            where=source,
            fix="set MODEL.TEXT_ENCODER as in training, or give --allow-partial '*zs_weight'",
        )
    return own.names != theirs.names or own.encoder_id != theirs.encoder_id


def _vocabulary(model: nn.Module) -> Vocabulary | None:
    vocabulary: Vocabulary | None = getattr(model, "vocabulary", None)
    return vocabulary


def _check(report: LoadReport, strict: bool) -> None:
    if not report.loaded:
        raise WeightsError(
            "none of its tensors has a name of this model",
            where=report.source,
            fix="check MODEL.WEIGHTS and the config file; docs/training.md lists what is read",
        )
    if report.complete:
        return
    for name in report.missing:
        logger.warning("missing in %s: %s", report.source, name)
    for name in report.unexpected:
        logger.warning("unexpected in %s: %s", report.source, name)
    if strict:
        shapes = [name for name, _, _ in report.mis_shaped]
        classes = any(name.endswith("zs_weight") for name in shapes)
        raise WeightsError(
            f"does not fit the model: {report.problems()}",
            where=report.source,
            fix="its vocabulary is another one: set MODEL.VOCABULARY"
            if classes
            else "--allow-partial PATTERN names what may stay uncovered",
        )
    logger.warning("%s does not fit the model: %s", report.source, report.problems())


def _summary(report: LoadReport) -> str:
    parts = [f"{len(report.loaded)} tensors loaded"]
    if report.backbone is not None:
        parts.append(f"a backbone, into {report.backbone or 'the model'}*")
    if report.kept:
        parts.append(f"class columns stay those of the configured vocabulary ({len(report.kept)})")
    if report.permitted:
        parts.append(f"uncovered with permission: {len(report.permitted)}")
    return ", ".join(parts)
