"""detectron2 0.6 on a current Python stack.

The release of 2021 meets NumPy 2, Pillow 13, Python 3.11+ and no compiled ``detectron2._C``. Each
repair below looks for the very thing that it mends, so on detectron2's main branch (or with a real
``_C``) this module changes nothing. It does not import detectron2: a repair of a detectron2 module
waits until that module is imported.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

GIT_INSTALL = "pip install 'git+https://github.com/facebookresearch/detectron2.git'"

_REMOVED_NUMPY_ALIASES: dict[str, type] = {
    "bool": bool,
    "int": int,
    "float": float,
    "object": object,
    "str": str,
}


class MissingOperatorError(AttributeError, RuntimeError):
    """A compiled detectron2 operator was asked for although detectron2 has none.

    An AttributeError as well, so that ``hasattr(_C, name)`` says no instead of failing.
    """


class _OperatorsStub(ModuleType):
    """Stands in for ``detectron2._C``: imports, and explains itself when an operator is used."""

    is_ext_common_stub = True

    def __init__(self) -> None:
        super().__init__("detectron2._C", "Stand-in for detectron2's compiled operators.")
        self.__spec__ = importlib.machinery.ModuleSpec("detectron2._C", None, origin="ext_common")
        self.__file__ = "not compiled"

    @staticmethod
    def get_compiler_version() -> str:
        return "not compiled"

    @staticmethod
    def get_cuda_version() -> str:
        return "not compiled"

    @staticmethod
    def has_cuda() -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingOperatorError(
            f"detectron2._C.{name} is a compiled operator and this detectron2 has none; "
            f"for deformable convolution or rotated boxes install it with: {GIT_INSTALL}"
        )


def has_compiled_ops() -> bool:
    """Whether detectron2's compiled operators can be used."""
    loaded = sys.modules.get("detectron2._C")
    if loaded is not None:
        return not isinstance(loaded, _OperatorsStub)
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return False
    # not importlib.util.find_spec("detectron2._C"): that would import detectron2
    locations = list(spec.submodule_search_locations)
    return importlib.machinery.PathFinder.find_spec("detectron2._C", locations) is not None


def _detectron2_file(relative: str) -> str:
    """Source text of a detectron2 file; empty where there is no detectron2 or no such file."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _imports_ops_unguarded(source: str) -> bool:
    """Whether a module imports ``_C`` at top level outside any ``try``."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "detectron2"
        and any(alias.name == "_C" for alias in node.names)
        for node in ast.parse(source).body
    )


def _repair_missing_ops() -> bool:
    if "detectron2._C" in sys.modules or has_compiled_ops():
        return False
    if not _imports_ops_unguarded(_detectron2_file("layers/deform_conv.py")):
        return False
    sys.modules["detectron2._C"] = _OperatorsStub()
    return True


def _repair_pillow() -> bool:
    if "Image.LINEAR" not in _detectron2_file("data/transforms/transform.py"):
        return False
    from PIL import Image

    if hasattr(Image, "LINEAR"):
        return False
    Image.LINEAR = Image.BILINEAR  # type: ignore[attr-defined]
    return True


def _repair_numpy() -> bool:
    if "dtype=np.int)" not in _detectron2_file("data/build.py"):
        return False
    import numpy as np

    missing = [name for name in _REMOVED_NUMPY_ALIASES if name not in np.__dict__]
    for name in missing:
        setattr(np, name, _REMOVED_NUMPY_ALIASES[name])
    return bool(missing)


class SetSamplingRandom(random.Random):
    """``sample`` accepts a set again, as it did before Python 3.11."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        """As :meth:`random.Random.sample`; a set is taken in sorted order."""
        if isinstance(population, set | frozenset):
            population = sorted(population)
        return super().sample(population, k, counts=counts)


def _repair_map_dataset(module: ModuleType) -> None:
    """The fallback for a mapper that returns None samples from a set."""
    dataset_class = module.MapDataset
    original_init = dataset_class.__init__

    def __init__(self: Any, dataset: Any, map_func: Any) -> None:
        original_init(self, dataset, map_func)
        if isinstance(getattr(self, "_rng", None), random.Random):
            self._rng = SetSamplingRandom(42)

    dataset_class.__init__ = __init__


def _repair_fast_eval(module: ModuleType) -> None:
    """``use_fast_impl`` without ``_C``: faster-coco-eval where installed, else pycocotools."""
    if not isinstance(sys.modules.get("detectron2._C"), _OperatorsStub):
        return
    from ext_common.evaluation.coco_backend import coco_eval_class

    module.COCOeval_opt = coco_eval_class()  # type: ignore[attr-defined]


def _quieten_anchors(module: ModuleType) -> None:
    """0.6 calls torch.meshgrid without ``indexing``: the right result, and a warning per process."""
    if "torch.meshgrid(shifts_y, shifts_x)" in _detectron2_file("modeling/anchor_generator.py"):
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)


_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "detectron2.data.common": _repair_map_dataset,
    "detectron2.evaluation.fast_eval_api": _repair_fast_eval,
    "detectron2.modeling.anchor_generator": _quieten_anchors,
}


class _RepairingLoader(importlib.abc.Loader):
    """Runs the module's own loader, then the repair."""

    def __init__(self, loader: importlib.abc.Loader, repair: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._repair = repair

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._repair(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _RepairFinder(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the modules in ``_AFTER_IMPORT``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        repair = _AFTER_IMPORT.get(fullname)
        if repair is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RepairingLoader(spec.loader, repair)
        return spec


def _watch_imports() -> bool:
    if any(isinstance(finder, _RepairFinder) for finder in sys.meta_path):
        return False
    sys.meta_path.insert(0, _RepairFinder())
    for name, repair in _AFTER_IMPORT.items():
        if name in sys.modules:
            repair(sys.modules[name])
    return True


def _needs_import_repairs() -> bool:
    return "self._rng.sample(self._fallback_candidates" in _detectron2_file("data/common.py") or (
        isinstance(sys.modules.get("detectron2._C"), _OperatorsStub)
    )


def apply() -> list[str]:
    """Repair what needs repair.

    Returns:
        Names of the repairs made by this call; empty on detectron2 main, and on a second call.
    """
    done = []
    for name, repair in (
        ("compiled operators", _repair_missing_ops),
        ("Pillow constants", _repair_pillow),
        ("NumPy aliases", _repair_numpy),
    ):
        if repair():
            done.append(name)
    if _needs_import_repairs() and _watch_imports():
        done.append("modules repaired after import")
    return done
