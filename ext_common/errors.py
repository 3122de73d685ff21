"""Typed errors: what is wrong, where, and what to do about it.

Every error that a user can cause is one of these, so that a tool prints one useful line and a
library user can catch the kind that matters.
"""

from __future__ import annotations


class ExtError(Exception):
    """Base of the project's errors.

    Args:
        what: the problem, with the offending value in it.
        where: file, config key, dataset or record id; empty where ``what`` names it already.
        fix: what the user can do; empty only where nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.fix})" if self.fix else text

    def __reduce__(self) -> tuple[object, ...]:
        # keyword arguments survive the trip from a loader worker to the parent process
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[ExtError], what: str, where: str, fix: str) -> ExtError:
    return kind(what, where=where, fix=fix)


class ConfigError(ExtError):
    """A config file, key or combination of keys that cannot work."""


class DatasetError(ExtError):
    """An unknown dataset, or annotations that do not describe what they should."""


class ImageError(ExtError):
    """An image that is missing, corrupt, over the size limit or not what its record says."""


class VocabularyError(ExtError):
    """Class names or text embeddings that are empty, duplicated or do not match."""


class WeightsError(ExtError):
    """Weights that are missing, unsafe to read, or do not fit the model."""


class LaunchError(ExtError):
    """Processes that cannot be started as asked."""
