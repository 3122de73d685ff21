"""Each repair of detectron2 0.6, shown on small packages that have the defect, and on the installed one."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.common import MapDataset
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import Boxes, Instances

import ext_common
from ext_common import compat
from ext_common.evaluation.coco_backend import coco_eval_class

# detectron2 as released in 2021, reduced to what breaks on a current stack
DEFECTIVE = {
    "layers/deform_conv.py": """
from detectron2 import _C
def deform(x): return _C.deform_conv_forward(x)
""",
    "data/transforms/transform.py": """
from PIL import Image
def extent(interp=Image.LINEAR): return interp
""",
    "data/build.py": """
import numpy as np
def histogram(n): return np.zeros((n,), dtype=np.int)
def other_aliases(): return [np.bool, np.float, np.object, np.str]
""",
    "data/common.py": """
import random
class MapDataset:
    def __init__(self, dataset, map_func):
        self._dataset, self._map_func = dataset, map_func
        self._rng = random.Random(42)
        self._fallback_candidates = set(range(len(dataset)))
    def __getitem__(self, index):
        while (data := self._map_func(self._dataset[index])) is None:
            self._fallback_candidates.discard(index)
            index = self._rng.sample(self._fallback_candidates, k=1)[0]
        return data
""",
    "evaluation/fast_eval_api.py": """
from detectron2 import _C
class COCOeval_opt:
    def evaluate(self): return _C.COCOevalEvaluateImages()
""",
}
# the same places as the main branch has them
MENDED = {
    "layers/deform_conv.py": """
try:
    from detectron2 import _C
except ImportError:
    _C = None
""",
    "data/transforms/transform.py": "from PIL import Image\ndef extent(interp=Image.BILINEAR): ...\n",
    "data/build.py": "import numpy as np\ndef histogram(n): return np.zeros((n,), dtype=int)\n",
    "data/common.py": DEFECTIVE["data/common.py"].replace(
        "self._rng.sample(self._fallback_candidates, k=1)[0]",
        "self._rng.choice(sorted(self._fallback_candidates))",
    ),
    "evaluation/fast_eval_api.py": DEFECTIVE["evaluation/fast_eval_api.py"],
}
PRELUDE = """
import importlib.util, json, sys
def load_compat():
    # by file: importing ext_common would make the repairs before we can ask what they were
    spec = importlib.util.spec_from_file_location("compat_by_file", COMPAT_FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compat_by_file"] = module
    spec.loader.exec_module(module)
    return module
def say(value): print("SAYS", json.dumps(value))
"""


def write_package(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "detectron2"
    for relative, text in {**files, "__init__.py": ""}.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(root).parents:
            (root / parent / "__init__.py").touch()
    return folder


def in_fresh_python(code: str, *paths: Path) -> object:
    """What ``say(...)`` said in a Python that finds packages in ``paths`` before the installed ones."""
    repository = Path(ext_common.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, repository)))}
    compat_file = f"COMPAT_FILE = {compat.__file__!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", compat_file + PRELUDE + code],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SAYS ")]
    return json.loads(line[5:])


@pytest.fixture
def defective(tmp_path: Path) -> Path:
    return write_package(tmp_path, DEFECTIVE)


@pytest.fixture
def mended(tmp_path: Path) -> Path:
    return write_package(tmp_path, MENDED)


# --- small packages ---------------------------------------------------------------------------


def test_every_repair_is_made_once(defective) -> None:
    first, second = in_fresh_python("c = load_compat(); say([c.apply(), c.apply()])", defective)
    assert "compiled operators" in first
    assert "Pillow constants" in first
    assert "NumPy aliases" in first
    assert "modules repaired after import" in first
    assert second == []


def test_importing_a_package_of_ours_is_enough(defective) -> None:
    code = """
import ext_common
from detectron2.data.build import histogram, other_aliases
from detectron2.data.transforms.transform import extent
from PIL import Image
say([extent() == Image.BILINEAR, histogram(3).tolist(), len(other_aliases()), ext_common._compat.apply()])
"""
    assert in_fresh_python(code, defective) == [True, [0, 0, 0], 4, []]


def test_missing_operators_import_and_explain_themselves(defective) -> None:
    code = """
import ext_common
from detectron2 import _C
from detectron2.layers.deform_conv import deform
try:
    deform(1)
except RuntimeError as error:
    message = str(error)
say([_C.get_compiler_version(), _C.get_cuda_version(), hasattr(_C, "nms_rotated"), message,
     ext_common._compat.has_compiled_ops()])
"""
    compiler, cuda, has_operator, message, compiled = in_fresh_python(code, defective)
    assert compiler == cuda == "not compiled"
    assert has_operator is False
    assert "deform_conv_forward" in message
    assert compat.GIT_INSTALL in message
    assert compiled is False


def test_compiled_operators_are_left_alone(tmp_path) -> None:
    folder = write_package(
        tmp_path,
        {
            **DEFECTIVE,
            "_C.py": "def get_compiler_version(): return 'g++'\ndef deform_conv_forward(x): return 7\n",
        },
    )
    code = """
c = load_compat()
done = c.apply()
from detectron2.evaluation.fast_eval_api import COCOeval_opt
from detectron2.layers.deform_conv import deform, _C
say([done, c.has_compiled_ops(), _C.get_compiler_version(), deform(1), COCOeval_opt.__module__])
"""
    done, compiled, compiler, result, evaluator = in_fresh_python(code, folder)
    assert "compiled operators" not in done
    assert "Pillow constants" in done
    assert (compiled, compiler, result) == (True, "g++", 7)
    assert evaluator == "detectron2.evaluation.fast_eval_api"


def test_nothing_is_done_to_the_main_branch(mended) -> None:
    code = """
import numpy as np
from PIL import Image
state = lambda: [len(sys.meta_path), "detectron2._C" in sys.modules, hasattr(Image, "LINEAR"),
                 hasattr(np, "int"), hasattr(np, "float")]
before = state()
done = load_compat().apply()
import ext_common
say([done, before, state()])
"""
    done, before, after = in_fresh_python(code, mended)
    assert done == []
    assert before == after


def test_a_package_without_detectron2_files_is_left_alone(tmp_path) -> None:
    folder = write_package(tmp_path, {"layers/other.py": ""})
    assert in_fresh_python("say(load_compat().apply())", folder) == []


MAPPED = """
from detectron2.data.common import MapDataset
pick = lambda: MapDataset(list(range(100)), lambda x: x if x > 9 else None)
say([[d[i] for i in range(12)] for d in (pick(), pick())])
"""


@pytest.mark.parametrize(
    "order", ["import ext_common\n", "import detectron2.data.common, ext_common\n"]
)
def test_a_mapper_may_return_none(defective, order) -> None:
    one, other = in_fresh_python(order + MAPPED, defective)
    assert one == other, "not deterministic"
    assert all(value > 9 for value in one)
    assert one[10:] == [10, 11]
    assert len(set(one[:10])) > 5, "always the same replacement"


def test_fast_evaluation_without_compiled_operators(defective) -> None:
    code = """
import ext_common
from detectron2.evaluation import fast_eval_api
from ext_common.evaluation.coco_backend import coco_eval_class
say([fast_eval_api.COCOeval_opt is coco_eval_class(), fast_eval_api.__spec__.name])
"""
    assert in_fresh_python(code, defective) == [True, "detectron2.evaluation.fast_eval_api"]


def test_the_stub_survives_what_tools_do_to_modules() -> None:
    stub = compat._OperatorsStub()
    assert getattr(stub, "__wrapped__", None) is None
    assert getattr(stub, "anything", "default") == "default"
    with pytest.raises(compat.MissingOperatorError, match="nms_rotated") as caught:
        stub.nms_rotated(1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- the installed detectron2 -----------------------------------------------------------------


def test_installed_environment_report() -> None:
    from detectron2.utils.collect_env import collect_env_info

    assert "detectron2" in collect_env_info()


def test_installed_map_dataset_skips_none_and_travels_to_workers() -> None:
    def values() -> list[int]:
        dataset = MapDataset(list(range(50)), even_or_none)
        return [dataset[i] for i in range(20)]

    assert values() == values()
    assert all(value % 2 == 0 for value in values())
    dataset = pickle.loads(pickle.dumps(MapDataset(list(range(50)), even_or_none)))
    assert [dataset[i] for i in range(20)] == values()


def even_or_none(x: int) -> int | None:
    return x if x % 2 == 0 else None


def coco_file(path: Path, rng: np.random.Generator) -> dict:
    """Ground truth of 6 images and 3 categories with boxes, polygons, and one crowd."""
    images = [{"id": i, "height": 80, "width": 100, "file_name": f"{i}.jpg"} for i in range(1, 7)]
    annotations = []
    for number in range(1, 31):
        x, y, w, h = map(float, (*rng.integers(0, 50, 2), *rng.integers(8, 30, 2)))
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": number, "image_id": 1 + number % 6, "category_id": int(rng.choice([2, 5, 9])),
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [outline],
            }
        )  # fmt: skip
    crowd = copy.deepcopy(annotations[0])
    counts = [0, 30 * 80, 80 * 100 - 30 * 80]
    crowd.update(id=31, iscrowd=1, segmentation={"size": [80, 100], "counts": counts})
    categories = [{"id": i, "name": f"c{i}"} for i in (2, 5, 9)]
    content = {
        "info": {}, "images": images, "annotations": [*annotations, crowd], "categories": categories,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return content


def predictions(image: dict, content: dict, rng: np.random.Generator) -> Instances:
    """The image's boxes, moved a little, some with a wrong class, and a few wrong boxes."""
    found = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
    boxes = np.array([*found, [1, 1, 30, 30], [60, 40, 20, 20]], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    boxes += rng.normal(0, 1.5, boxes.shape).astype(np.float32)
    boxes = np.clip(boxes, 0, [100, 80, 100, 80]).astype(np.float32)
    ids = [a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]]
    classes = np.array([{2: 0, 5: 1, 9: 2}[i] for i in ids] + [0, 1])
    wrong = rng.random(len(classes)) < 0.2
    classes[wrong] = rng.integers(0, 3, wrong.sum())
    masks = np.zeros((len(boxes), 80, 100), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(
        (80, 100),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.from_numpy(rng.permutation(len(boxes)) / len(boxes)),
        pred_classes=torch.from_numpy(classes),
        pred_masks=torch.from_numpy(masks),
    )


@pytest.fixture
def coco_dataset(tmp_path):
    content = coco_file(tmp_path / "gt.json", np.random.default_rng(0))
    name = f"compat_{tmp_path.name}"
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "gt.json"),
        thing_classes=["c2", "c5", "c9"],
        thing_dataset_id_to_contiguous_id={2: 0, 5: 1, 9: 2},
    )
    yield name, content
    MetadataCatalog.remove(name)


def test_installed_default_evaluator_equals_pycocotools(coco_dataset, tmp_path) -> None:
    name, content = coco_dataset
    if isinstance(sys.modules.get("detectron2._C"), compat._OperatorsStub):
        assert coco_evaluation.COCOeval_opt is coco_eval_class()
    results = []
    for options in ({}, {"use_fast_impl": False}):
        evaluator = COCOEvaluator(
            name, ("bbox", "segm"), distributed=False, output_dir=str(tmp_path), **options
        )
        evaluator.reset()
        rng = np.random.default_rng(1)
        for image in content["images"]:
            instances = predictions(image, content, rng)
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        results.append(evaluator.evaluate())
    fast, reference = results
    for task in ("bbox", "segm"):
        assert 10 < reference[task]["AP"] < 95, "a case that says nothing"
        assert list(fast[task]) == list(reference[task])
        np.testing.assert_allclose(
            list(fast[task].values()), list(reference[task].values()), rtol=0, atol=1e-9
        )


def test_anchor_grids_do_not_warn() -> None:
    code = (
        "import warnings, ext_common, torch\n"
        "warnings.filterwarnings('error', message='torch.meshgrid')\n"
        "from detectron2.modeling import anchor_generator\n"
        "x, y = anchor_generator._create_grid_offsets([2, 3], 4, 0.0, torch.device('cpu'))\n"
        "print(x.tolist(), y.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "[0.0, 4.0, 8.0, 0.0, 4.0, 8.0] [0.0, 0.0, 0.0, 4.0, 4.0, 4.0]" in done.stdout, (
        done.stderr
    )
