"""Region features: fields that belong together, published names, the tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ext_common.config import load_config
from ext_common.drawing import draw_detections
from ext_common.errors import DatasetError
from ext_common.modeling.build import build_model
from ext_common.results import Detections
from regionclip_ext.extraction.chosen_results import choose, read_results
from regionclip_ext.extraction.pictures import output_paths
from regionclip_ext.extraction.region_features import region_features
from tests.regionclip_ext.pair_files import picture
from tests.regionclip_ext.tiny_detector import CONFIGS, DIM, tiny_options
from tools.prepare import draw_results
from tools.prepare_data import main

NAMES = "cat,dog,remote control"


def _options(folder: Path, **keys: Any) -> list[str]:
    return tiny_options(
        folder, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0, MODEL__CLIP__CLSS_TEMP=1.0, **keys
    )


def _batch() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    return [{"image": image, "height": 128, "width": 192, "file_name": "a.png"}]


def test_classified_regions_have_features_of_their_own(tmp_path: Path) -> None:
    options = _options(tmp_path, MODEL__VOCABULARY=NAMES)
    torch.manual_seed(1)
    model: Any = build_model(load_config(CONFIGS / "zeroshot_RN50.yaml", options)).eval()
    (found,) = region_features(model, _batch(), classify=True)
    tensors = found.tensors()
    count = len(tensors["boxes"])
    assert count > 3
    assert tensors["boxes"].shape == (count, 4)
    assert tensors["feats"].shape == (count, DIM)
    assert tensors["probs"].shape == (count, 4)
    assert tensors["classes"].max() < 3
    # every feature belongs to its box: the model sees the same when asked for that box
    (everything,) = region_features(model, _batch(), classify=False)
    distances = torch.cdist(tensors["boxes"], everything.boxes_N4)
    rows = distances.argmin(dim=1)
    assert distances.min(dim=1).values.max() < 1e-3
    assert torch.allclose(everything.feats_ND[rows], tensors["feats"], atol=1e-5)
    logits = model.roi_heads.box_predictor(tensors["feats"])[0]
    assert torch.allclose(logits.softmax(dim=1), tensors["probs"], atol=1e-5)


def test_empty_boxes_leave_all_fields_alike(tmp_path: Path) -> None:
    options = _options(tmp_path, MODEL__VOCABULARY=NAMES)
    torch.manual_seed(1)
    model: Any = build_model(load_config(CONFIGS / "zeroshot_RN50.yaml", options)).eval()
    narrow = [{**_batch()[0], "width": 1, "height": 1}]
    propose = model.propose

    def with_an_empty_box(batch: Any) -> Any:
        (found,) = propose(batch)
        found.proposal_boxes.tensor[0, 2:] = found.proposal_boxes.tensor[0, :2]
        return [found]

    model.propose = with_an_empty_box
    (found,) = region_features(model, narrow, classify=False)
    assert len(found.boxes_N4) == len(found.feats_ND)
    whole = len(propose(narrow)[0])
    assert len(found.boxes_N4) == whole - 1


def test_names_with_dots_do_not_collide(tmp_path: Path) -> None:
    for name in ("a.1.png", "a.2.png", "b.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    paths = output_paths(tmp_path, tmp_path / "out", ".pth")
    assert [path.name for path in paths.values()] == [
        "a.1.pth",
        "a.2.pth",
        "b.jpg.pth",
        "b.png.pth",
    ]


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_tool_writes_a_file_per_picture_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture(1))
    Image.new("RGB", (50, 70)).save(pictures / "b.png")
    words = ["region-features", "--config-file", str(CONFIGS / "zeroshot_RN50.yaml")]
    words += ["--images", str(pictures), "--output", str(tmp_path / "out"), "--format", suffix]
    words += ["--batch-size", "2", *_options(tmp_path, MODEL__VOCABULARY=NAMES)]
    assert main(words) == 0
    assert "2 of 2 pictures were new" in capsys.readouterr().out
    file = tmp_path / "out" / f"a{suffix}"
    if suffix == ".pth":
        content = {k: v.numpy() for k, v in torch.load(file, weights_only=True).items()}
    else:
        with np.load(file) as archive:
            content = dict(archive)
    assert set(content) == {"boxes", "feats", "classes", "probs"}
    assert content["boxes"][:, 2].max() <= 64
    assert len({len(value) for value in content.values()}) == 1
    assert main(words) == 0
    assert "0 of 2 pictures were new" in capsys.readouterr().out


def test_features_of_other_settings_are_refused_or_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, output = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture(1))
    torch.manual_seed(1)
    cfg = load_config(CONFIGS / "zeroshot_RN50.yaml", _options(tmp_path))
    for name in ("one.pth", "other.pth"):
        torch.save({"model": build_model(cfg).state_dict()}, tmp_path / name)

    def extract(*words: str, weights: str = "one.pth", names: str = NAMES, size: int = 64) -> int:
        fixed = ["region-features", "--config-file", str(CONFIGS / "zeroshot_RN50.yaml")]
        fixed += ["--images", str(pictures), "--output", str(output), "--vocabulary", names]
        options = _options(tmp_path, INPUT__MIN_SIZE_TEST=size)
        return main([*fixed, "--weights", str(tmp_path / weights), *words, *options])

    assert extract() == 0
    before = (output / "a.pth").read_bytes()
    capsys.readouterr()
    assert extract(names="cat, dog") == 1
    message = capsys.readouterr().err
    for part in ("MODEL.VOCABULARY was 'cat,dog,remote control', is 'cat, dog'", "--overwrite"):
        assert part in message
    assert extract(weights="other.pth") == 1
    assert "weights was 'one.pth" in capsys.readouterr().err
    assert extract(size=48) == 1
    assert "INPUT.MIN_SIZE_TEST was 64, is 48" in capsys.readouterr().err
    assert extract("--format", ".npz", names="cat, dog") == 1  # one folder, one kind of features
    assert (output / "a.pth").read_bytes() == before
    assert extract("--overwrite", names="cat, dog") == 0
    assert torch.load(output / "a.pth", weights_only=True)["probs"].shape[1] == 3
    assert extract(names="cat, dog") == 0
    assert "0 of 1 pictures were new" in capsys.readouterr().out
    (output / "region_features.json").unlink()
    assert extract(names="cat, dog") == 1
    assert "no region_features.json" in capsys.readouterr().err


def _prediction(
    box: list[float], score: float, category: int = 1, image: int = 0
) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_unique_boxes_are_drawn_once_and_small_ones_not() -> None:
    large, other, small = [0.0, 0, 20, 20], [5.0, 5, 20, 20], [0.0, 0, 2, 2]
    predictions = [
        _prediction(large, 0.9, 1),
        _prediction(large, 0.8, 2),
        _prediction(small, 0.7),
        _prediction(other, 0.6),
        _prediction(other, 0.1),
    ]
    assert choose(predictions, threshold=0.5) == predictions[:4]
    chosen = choose(predictions, threshold=0.05, unique=True, smallest=10)
    assert [entry["score"] for entry in chosen] == [0.9, 0.6]
    # as published, the limit counts what is looked at
    assert len(choose(predictions, threshold=0.05, unique=True, smallest=10, most=3)) == 1


def test_results_are_drawn_on_the_pictures_of_their_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(1, (200, 160)))
    annotations = {
        "images": [{"id": 0, "file_name": "a.png", "height": 160, "width": 200}],
        "annotations": [],
        "categories": [{"id": 4, "name": "square"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(annotations))
    (tmp_path / "datasets.yaml").write_text(
        "datasets:\n  drawn_results: {type: coco, json: ann.json, images: images}\n"
    )
    results = tmp_path / "results.json"
    results.write_text(json.dumps([_prediction([20, 20, 60, 60], 0.9, 4)]))
    words = ["draw-results", "--input", str(results), "--output", str(tmp_path / "out")]
    words += ["--dataset", "drawn_results", "--registry", str(tmp_path / "datasets.yaml")]
    assert main(words) == 0
    with Image.open(tmp_path / "out" / "a.png") as drawn:
        colours = np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 3  # more than the picture has
    results.write_text(json.dumps([_prediction([0, 0, 1, 1], 0.9, 4, image=5)]))
    assert main(words) == 1
    results.write_text(json.dumps([_prediction([0, 0, 1, 1], 0.9, 5)]))
    assert main(words) == 1
    assert "1 category ids are not in drawn_results, the first is 5" in capsys.readouterr().err
    results.write_text("{}")
    with pytest.raises(DatasetError, match="no list of predictions"):
        read_results(results)


def test_lvis_results_are_drawn_under_their_names_and_folders_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("train/1.png", "val/1.jpg", "val/1.png", "val/2.png")
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / place)
    names = ["aerosol_can", "bat", "cat"]
    records = [
        {"file_name": str(tmp_path / place), "image_id": key, "height": 48, "width": 64}
        for key, place in enumerate(places)
    ]
    annotations = {
        "images": [{"id": key, "height": 48, "width": 64} for key in range(len(places))],
        "categories": [{"id": 1 + row, "name": name} for row, name in enumerate(names)],
    }
    (tmp_path / "ann.json").write_text(json.dumps(annotations))
    name = f"lvis_to_draw_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    # as detectron2 registers LVIS: no thing_dataset_id_to_contiguous_id
    MetadataCatalog.get(name).set(thing_classes=names, json_file=str(tmp_path / "ann.json"))
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps([_prediction([5, 5, 20, 20], 0.9, min(1 + key, 3), key) for key in range(4)])
    )
    seen = []

    def spy(picture: Any, found: Detections) -> Any:
        seen.append([found.class_names[row] for row in found.class_ids_R])
        return draw_detections(picture, found)

    monkeypatch.setattr(draw_results, "draw_detections", spy)
    words = ["--input", str(results), "--output", str(tmp_path / "out"), "--dataset", name]
    try:
        assert main(["draw-results", *words]) == 0
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert seen == [["aerosol_can"], ["bat"], ["cat"], ["cat"]]
    drawn = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert drawn == ["train/1.png", "val/1.jpg.png", "val/1.png.png", "val/2.png"]
