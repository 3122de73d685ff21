"""Project metadata. detectron2 is not a requirement here: docs/installation.md says why."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="detectron2-ext",
    version="0.1.0",
    description=(
        "Detic, SoCo, RegionCLIP and frozen-backbone detection as extension packages of detectron2"
    ),
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            f"{name}{suffix}"
            for name in (
                "ext_common",
                "detic_ext",
                "soco_ext",
                "regionclip_ext",
                "frozen_backbone_ext",
            )
            for suffix in ("", ".*")
        ]
    ),
    package_data={
        name: ["py.typed"]
        for name in (
            "ext_common",
            "detic_ext",
            "soco_ext",
            "regionclip_ext",
            "frozen_backbone_ext",
        )
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0",
        "open_clip_torch>=3.0",
        "safetensors>=0.4",
        "numpy>=1.26",
        "pillow>=10",
        "pycocotools>=2.0.7",
        "PyYAML>=6",
        "tqdm>=4.60",
        "tabulate>=0.9",
        "tensorboard>=2.15",
        "matplotlib>=3.7",
        "scipy>=1.10",
        "shapely>=2",
        "textblob>=0.18",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "cloudpickle",
        "termcolor>=1.1",
        "setuptools<81",
    ],
    extras_require={
        "demo": ["opencv-contrib-python-headless>=4.10", "scikit-image>=0.22"],
        "proposals": ["numba>=0.61", "opencv-contrib-python-headless>=4.10"],
        "dev": [
            "faster-coco-eval>=1.6",
            "hypothesis>=6",
            "mypy>=1.10",
            "numba>=0.61",
            "opencv-contrib-python-headless>=4.10",
            "pytest>=8",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "ruff>=0.6",
            "scikit-image>=0.22",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
