"""``prepare_data.py proposals`` goes on only with a folder of the same detector, settings and images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator

from ext_common.config import load_config
from tests.regionclip_ext.golden_models import CONFIGS
from tests.regionclip_ext.pair_files import write_coco
from tests.regionclip_ext.tiny_detector import tiny_options, write_offline
from tools import prepare_data


def _write_rpn(path: Path, seed: int) -> Path:
    """A tiny detector's checkpoint; other seeds give files of equal size."""
    path.parent.mkdir(exist_ok=True)
    cfg = load_config(write_offline(path.parent))
    torch.manual_seed(seed)
    backbone = build_backbone(cfg)
    generator = build_proposal_generator(cfg, backbone.output_shape())
    parts = {"backbone": backbone, "proposal_generator": generator}
    state = {f"{p}.{n}": v for p, part in parts.items() for n, v in part.state_dict().items()}
    torch.save({"model": state}, path)
    return path


def _run(folder: Path, weights: Path, captions: Path, *opts: str) -> int:
    small = tiny_options(
        folder,
        AUG__TRAIN__IMAGE_SIZE=[48],
        AUG__TRAIN__MAX_SIZE=96,
        MODEL__CLIP__PRETRAIN_RPN_REGIONS=8,
        DATASETS__PATH_TRAIN=(str(captions),),
    )
    words = ["proposals", "--config-file", str(CONFIGS / "pretrain_coco_RN50.yaml")]
    words += ["--rpn-weights", str(weights), "--output", str(folder / "regions")]
    return prepare_data.main([*words, *small, *opts])


def test_only_a_folder_of_the_same_run_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _write_rpn(tmp_path / "a" / "model_final.pth", 0)
    other = _write_rpn(tmp_path / "b" / "model_final.pth", 1)
    assert first.stat().st_size == other.stat().st_size
    captions = write_coco(tmp_path / "coco", 3)
    assert _run(tmp_path, first, captions) == 0
    assert "2 of 2 images were new" in capsys.readouterr().out

    def refused(*opts: str, weights: Path = first) -> str:
        assert _run(tmp_path, weights, captions, *opts) == 1
        error = capsys.readouterr().err
        assert "of another detector or setting" in error
        assert "delete the folder, or name another --output" in error
        return error

    assert "weights_sha256" in refused(weights=other)
    assert "interpolation was 3, is 0" in refused("AUG.INTERPOLATION", "0")
    assert "channels was 'RGB', is 'BGR'" in refused("INPUT.FORMAT", "BGR")
    for option, value in (
        ("MODEL.RPN.PRE_NMS_TOPK_TEST", "7"),
        ("MODEL.PIXEL_STD", "[50., 50., 50.]"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", "[2., 2., 1., 1.]"),
    ):
        words = ("MODEL.CLIP.OFFLINE_RPN_OPTS", f"['{option}', '{value}']")
        assert "config_digest" in refused(*words)
        assert "weights_sha256" not in refused(*words)
    # the same detector under another name, read elsewhere by other paths
    copy = tmp_path / "renamed.pth"
    shutil.copy(first, copy)
    paths = "['MODEL.WEIGHTS', 'x.pth', 'DATASETS.INDEX_FOLDER', 'y', 'OUTPUT_DIR', 'z']"
    assert _run(tmp_path, copy, captions, "MODEL.CLIP.OFFLINE_RPN_OPTS", paths) == 0
    assert "0 of 2 images were new" in capsys.readouterr().out


def test_regions_of_other_pictures_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = _write_rpn(tmp_path / "a" / "model_final.pth", 0)
    captions = write_coco(tmp_path / "coco", 3)
    assert _run(tmp_path, weights, captions) == 0
    content = json.loads(captions.read_text())
    for image in content["images"]:
        name = f"new_{image['file_name']}"
        shutil.copy(
            tmp_path / "coco/tiny2017" / image["file_name"], tmp_path / "coco/tiny2017" / name
        )
        image["file_name"] = name
    captions.write_text(json.dumps(content))
    capsys.readouterr()
    assert _run(tmp_path, weights, captions) == 1
    assert "part-00000.regions: holds proposals of other images" in capsys.readouterr().err
