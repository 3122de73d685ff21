"""The commands of docs/regionclip.md as they stand, with sizes of a test behind them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ext_common.modeling.build import build_model
from tests.dist.tiny_training import write_dataset
from tests.regionclip_ext.tiny_detector import tiny_config, tiny_options
from tests.regionclip_ext.tool_logging import logging_restored
from tools import demo, train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "regionclip.md").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"^## (.+?)\n\n```\n(.+?)\n```", PAGE, flags=re.MULTILINE | re.DOTALL))
OWN = "regionclip_pretrained-cc_rn50.pth"
SOLVER = {
    "SOLVER__IMS_PER_BATCH": 2,
    "SOLVER__STEPS": (),
    "SOLVER__MAX_ITER": 1,
    "DATALOADER__NUM_WORKERS": 0,
    "INPUT__MIN_SIZE_TRAIN": (64,),
}


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The tools set logging up for a whole process, which is this one here."""
    with logging_restored():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page says one needs: weights, boxes of my own, photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_dataset(tmp_path, "my_boxes", "my_val").rename(tmp_path / "my.yaml")
    shutil.copy(tmp_path / "images" / "1.png", _made(tmp_path / "photos"))
    torch.manual_seed(0)
    model = build_model(tiny_config(tmp_path))
    with torch.no_grad():  # logits above 0: raw fusion drops the others
        model.get_parameter("offline_proposal_generator.rpn_head.objectness_logits.bias").fill_(5)
    state = model.state_dict()
    torch.save({"model": state}, _made(tmp_path / "models") / OWN)
    torch.save({"model": state}, tmp_path / "model.pth")
    rpn = {n.removeprefix("offline_"): v for n, v in state.items() if n.startswith("offline_")}
    torch.save({"model": rpn}, tmp_path / "models" / "my_rpn.pth")
    return tmp_path


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _run(title: str, folder: Path, **keys: Any) -> int:
    """A section's command; what it names itself stays as it names it."""
    tool, *words = shlex.split(COMMANDS[title].replace("\\\n", " "))[1:]
    pairs = tiny_options(folder, **keys)
    small = [
        word
        for key, value in zip(pairs[::2], pairs[1::2], strict=True)
        for word in (key, value)
        if key not in words
    ]
    return {"tools/demo.py": demo.main, "tools/train_net.py": train_net.main}[tool](words + small)


def test_my_classes_in_my_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("My classes in my pictures, without training", folder) == 0, capsys.readouterr().err
    assert list((folder / "found").iterdir())


def test_my_boxes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, as names of datasets are for a whole process."""
    for title in ("Fine-tune on my boxes", "My classes on a test set"):
        output = folder / title.split()[0]
        code = _run(title, folder, OUTPUT_DIR=str(output), **SOLVER)
        assert code == 0, capsys.readouterr().err
        (results,) = output.rglob("coco_instances_results.json")
        assert isinstance(json.loads(results.read_text()), list)
    assert (folder / "Fine-tune" / "model_final.pth").is_file()
    assert not (folder / "My" / "model_final.pth").exists()
