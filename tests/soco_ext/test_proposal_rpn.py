from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ext_common.errors import ConfigError
from ext_common.transforms import build_augmentations
from soco_ext.proposals.filtering import rects_to_boxes
from soco_ext.proposals.proposal_file import ProposalFile
from soco_ext.proposals.rpn_finder import RpnFinder
from tests.ext_common.tiny_detectors import tiny_config
from tests.soco_ext.scenes import scene, write_scenes
from tests.tools.prepare_runs import run


def test_boxes_are_those_of_the_network_in_the_pixels_of_the_picture() -> None:
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    torch.manual_seed(0)
    finder = RpnFinder(build_model(cfg), build_augmentations(cfg, False), cfg.INPUT.FORMAT, most=7)
    image = scene(1, (32, 48))
    rects = finder("a.png", (32, 48), image)
    assert rects.shape == (7, 4)
    boxes = rects_to_boxes(rects)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 47).all()
    assert (boxes[:, 3] <= 31).all()
    # the same by detectron2's own inference: the picture is twice as large there
    bgr = torch.from_numpy(np.asarray(resized(image)[:, :, ::-1].transpose(2, 0, 1).copy()))
    with torch.no_grad():
        images = finder.model.preprocess_image([{"image": bgr}])
        found = finder.model.proposal_generator(images, finder.model.backbone(images.tensor))
    wanted = found[0][0].proposal_boxes.tensor[:7] / 2
    corners = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1)
    np.testing.assert_allclose(corners, wanted.numpy(), atol=1e-3)


def resized(image: np.ndarray) -> np.ndarray:
    """Detectron2's resizing of the shortest edge to 64."""
    from detectron2.data import transforms as T

    augmented = T.AugInput(image)
    T.ResizeShortestEdge(64, 1333)(augmented)
    return augmented.image


def test_a_detector_without_a_proposal_network() -> None:
    with pytest.raises(ConfigError, match="no proposal network"):
        RpnFinder(torch.nn.Identity(), [], "RGB")


def test_the_command_runs_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 64
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    write_scenes(tmp_path / "tree", 2)
    words = (
        "soco-proposals",
        "--images",
        tmp_path / "tree",
        "--source",
        "rpn",
        "--strategy",
        "none",
    )
    words = (*words, "--output", tmp_path / "p", "--config-file", tmp_path / "tiny.yaml")
    assert run(*words, "--most", "9") == 1
    assert "would be random" in capsys.readouterr().err
    weights = ("--opts", "MODEL.WEIGHTS", tmp_path / "model.pth")
    assert run(*words, "--most", "9", *weights) == 0
    file = ProposalFile(tmp_path / "p")
    assert file.settings["source"] == "rpn"
    assert len(file) == 2
    assert (file.counts() <= 9).all()
