from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ext_common.data.unlabelled_images import images_of_folder
from ext_common.errors import ConfigError
from ext_common.transforms import build_augmentations
from soco_ext.proposals.filtering import BoxFilter, rects_to_boxes
from soco_ext.proposals.generation import Request, find_proposals, journal_of
from soco_ext.proposals.proposal_file import open_proposals
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


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a detector: configuration and weights."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 64
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "tiny.yaml").write_text(cfg.dump())
    return folder / "tiny.yaml", folder / "model.pth"


def command(detector: tuple[Path, Path], tree: Path, output: Path, *words: str) -> list[str | Path]:
    config, weights = detector
    first = ["soco-proposals", "--images", tree, "--output", output, "--config-file", config]
    options = ["--source", "rpn", "--strategy", "none", "--most", "9", *words]
    return [*first, *options, "--opts", "MODEL.WEIGHTS", weights]


def test_the_command_runs_a_detector(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "tree", 2)
    words = command(detector, tmp_path / "tree", tmp_path / "p", "--workers", "1")
    assert run(*words[:-3]) == 1
    assert "would be random" in capsys.readouterr().err
    assert run(*words) == 0
    file = open_proposals(tmp_path / "p")
    assert file.settings["source"] == "rpn"
    assert len(file) == 2
    assert (file.counts() <= 9).all()


def test_workers_find_the_same_and_go_on_where_a_run_stopped(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_scenes(tmp_path / "tree", 6)
    tree, alone, shared = (tmp_path / name for name in ("tree", "alone", "shared"))
    assert run(*command(detector, tree, alone, "--workers", "1")) == 0
    good = (tree / names[4]).read_bytes()
    (tree / names[4]).write_bytes(b"no image")
    words = command(detector, tree, shared, "--workers", "2")
    assert run(*words) == 1
    assert journal_of(shared).exists()
    assert not shared.exists()
    (tree / names[4]).write_bytes(good)
    capsys.readouterr()
    assert run(*words) == 0
    assert "4 images were done before" in capsys.readouterr().out
    wanted, found = open_proposals(alone), open_proposals(shared)
    assert [found.name(n) for n in range(len(found))] == names
    assert found.counts().tolist() == wanted.counts().tolist()
    for place in range(len(names)):
        np.testing.assert_allclose(found.boxes(place), wanted.boxes(place), atol=1e-3)


class Watched:
    """A finder that notes the processes it runs in: its boxes say which."""

    name = "watched"
    needs_pixels = True

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: object) -> np.ndarray:
        assert np.asarray(image_HW3).shape == (*size_hw, 3)
        return np.array([[0.0, 0.0, 40.0, 40.0]] * (1 if multiprocessing.parent_process() else 2))


@pytest.mark.parametrize(("here", "boxes"), [(False, 1), (True, 2)], ids=["worker", "here"])
def test_where_boxes_are_found(tmp_path: Path, here: bool, boxes: int) -> None:
    write_scenes(tmp_path / "tree", 3)
    (tmp_path / "tree" / "z.png").write_bytes(b"no image")
    images = images_of_folder(tmp_path / "tree")
    request = Request(
        images, Watched(), BoxFilter.parse("none"), workers=2, find_here=here, skip_bad=True
    )
    outcome = find_proposals(request, tmp_path / "p")
    assert open_proposals(tmp_path / "p").counts().tolist() == [boxes] * 3
    assert len(outcome.bad) == 1
    assert "z.png" in outcome.bad[0]
