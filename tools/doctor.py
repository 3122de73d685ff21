"""Says what this machine has and what to do about what is missing.

Exit code 0 if the required part is there. ``--required-only`` prints the required part alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 11)
MIN_DISK_GB = 5.0
DATASET_FILES = {
    "COCO": "coco/annotations/instances_val2017.json",
    "LVIS v1": "lvis/lvis_v1_val.json",
    "ImageNet-LVIS": "imagenet/annotations/imagenet_lvis_image_info.json",
    "Objects365": "objects365/annotations/zhiyuan_objv2_val_fixname.json",
    "OpenImages": "oid/annotations/oid_challenge_2019_val_expanded.json",
    "ImageNet": "imagenet/train",
    "CC3M": "cc3m/train_image_info.json",
}


@dataclass(frozen=True)
class Line:
    """One row: what was looked at, whether it is fine, what was found, how to mend it."""

    name: str
    good: bool
    found: str
    fix: str = ""
    required: bool = True


def check_python() -> Line:
    """Version of the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    fix = f"make setup PYTHON=python{MIN_PYTHON[0]}.{MIN_PYTHON[1]} (or newer)"
    return Line("Python", sys.version_info >= MIN_PYTHON, version, fix)


def check_torch() -> Line:
    """Version of torch, and that torchvision's operators work with it."""
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    except Exception as error:  # any failure to import or run is the finding
        return Line("torch + torchvision", False, _first_line(error), "make setup")
    return Line("torch + torchvision", True, f"{torch.__version__}, {torchvision.__version__}")


def check_cuda() -> Line:
    """GPUs, if any."""
    try:
        import torch
    except ImportError:
        return Line("CUDA", False, "torch is missing", "make setup", required=False)
    if not torch.cuda.is_available():
        fix = "everything runs on the CPU with MODEL.DEVICE cpu; a GPU needs NVIDIA's driver"
        return Line("CUDA", False, "no GPU", fix, required=False)
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    found = f"{torch.cuda.device_count()} x {', '.join(names)} (CUDA {torch.version.cuda})"
    return Line("CUDA", True, found, required=False)


def check_detectron2() -> Line:
    """Which detectron2, and that it imports."""
    try:
        importlib.import_module("ext_common")  # first: it repairs detectron2 0.6
        version = importlib.import_module("detectron2").__version__
        importlib.import_module("detectron2.modeling")
    except Exception as error:
        return Line("detectron2", False, _first_line(error), "make setup")
    return Line("detectron2", True, f"{version} from {_distribution('detectron2')}")


def check_compiled_ops() -> Line:
    """detectron2's compiled operators, which nothing here requires."""
    from ext_common import compat

    if compat.has_compiled_ops():
        return Line("detectron2 operators", True, "compiled", required=False)
    fix = "only deformable convolution needs them: make setup DETECTRON2=git (reaches GitHub)"
    return Line("detectron2 operators", False, "not compiled", fix, required=False)


def check_packages() -> Line:
    """The five packages import."""
    try:
        from ext_common.packages import register_all

        register_all()
    except Exception as error:
        return Line("our packages", False, _first_line(error), "make setup")
    return Line("our packages", True, "importable")


def check_evaluation() -> Line:
    """Which COCO evaluation is used."""
    try:
        from ext_common.evaluation.coco_backend import coco_eval_class

        found = coco_eval_class().__module__.split(".", maxsplit=1)[0]
    except Exception as error:
        return Line("COCO evaluation", False, _first_line(error), "make setup")
    return Line("COCO evaluation", True, found)


def check_selective_search() -> Line:
    """OpenCV with ximgproc, for SoCo's fast proposals."""
    try:
        import cv2

        cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    except ImportError as error:
        return Line("OpenCV", False, _first_line(error), "make setup", required=False)
    except AttributeError:
        fix = "pip uninstall every opencv-* package, then make setup"
        return Line("OpenCV", False, "no ximgproc (two opencv packages?)", fix, required=False)
    return Line("OpenCV", True, f"{cv2.__version__} with selective search", required=False)


def check_numba() -> Line:
    """Numba, for SoCo's proposals in the authors' form."""
    try:
        import numba
    except ImportError as error:  # missing, or made for an older NumPy
        fix = "pip install -U numba, or use OpenCV's proposals"
        return Line("Numba", False, _first_line(error), fix, required=False)
    return Line("Numba", True, numba.__version__, required=False)


def check_clip() -> Line:
    """CLIP weights in the usual caches."""
    folders = [
        Path(os.environ.get("CLIP_CACHE", "~/.cache/clip")).expanduser(),
        Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub",
    ]
    found = sorted(
        path.name
        for folder in folders
        if folder.is_dir()
        for pattern in ("*.pt", "models--*CLIP*", "models--*clip*", "models--timm--vit*clip*")
        for path in folder.glob(pattern)
    )
    if found:
        return Line("CLIP weights", True, ", ".join(found[:3]), required=False)
    fix = (
        "download ViT-B-32.pt once and set MODEL.TEXT_ENCODER.WEIGHTS to it; "
        "the demo and the tests use the 'hash' encoder instead"
    )
    return Line("CLIP weights", False, "none found", fix, required=False)


def check_disk() -> Line:
    """Free space where outputs are written."""
    free = shutil.disk_usage(ROOT).free / 1e9
    return Line(
        "disk", free >= MIN_DISK_GB, f"{free:.0f} GB free", "make clean, or free some space"
    )


def check_datasets() -> Line:
    """Datasets under DETECTRON2_DATASETS (datasets/README.md describes the tree)."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    found = [name for name, path in DATASET_FILES.items() if (root / path).exists()]
    fix = f"see datasets/README.md; the folder looked at is {root} (DETECTRON2_DATASETS)"
    return Line("datasets", bool(found), ", ".join(found) or "none", fix, required=False)


REQUIRED: tuple[Callable[[], Line], ...] = (
    check_python,
    check_torch,
    check_detectron2,
    check_packages,
    check_evaluation,
    check_disk,
)
OPTIONAL: tuple[Callable[[], Line], ...] = (
    check_cuda,
    check_compiled_ops,
    check_selective_search,
    check_numba,
    check_clip,
    check_datasets,
)


def _distribution(package: str) -> str:
    """Name and version of the installed distribution that brings ``package``."""
    names = importlib.metadata.packages_distributions().get(package, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120]


def run(checks: tuple[Callable[[], Line], ...]) -> list[Line]:
    """Run the checks; one that fails to run is a red line, not a crash."""
    lines = []
    for check in checks:
        try:
            lines.append(check())
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            required = check in REQUIRED
            lines.append(Line(name, False, _first_line(error), "make setup", required=required))
    return lines


def show(lines: list[Line]) -> str:
    """The table, with one fix under each line that is not green."""
    colour = sys.stdout.isatty()
    rows = []
    width = max(len(line.name) for line in lines)
    for line in lines:
        mark = "ok" if line.good else ("MISSING" if line.required else "absent")
        code = "32" if line.good else ("31" if line.required else "33")
        shown = f"\033[{code}m{mark:<8}\033[0m" if colour else f"{mark:<8}"
        rows.append(f"{shown}{line.name:<{width}}  {line.found}")
        if not line.good and line.fix:
            rows.append(f"{'':8}{'':<{width}}  -> {line.fix}")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """Print the table.

    Returns:
        0 if everything required is there, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--required-only", action="store_true", help="skip what is optional")
    arguments = parser.parse_args(argv)
    lines = run(REQUIRED if arguments.required_only else REQUIRED + OPTIONAL)
    print(show(lines))
    bad = [line.name for line in lines if line.required and not line.good]
    if bad:
        print(f"not ready: {', '.join(bad)}")
        return 1
    print("ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
