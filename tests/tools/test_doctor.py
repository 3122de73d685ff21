from __future__ import annotations

from pathlib import Path

import pytest

from tools import doctor


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    for name in ("Python", "torch", "detectron2", "CUDA", "CLIP weights", "disk", "datasets"):
        assert name in shown
    assert shown.strip().endswith("ready")


def test_every_line_that_is_not_green_has_a_fix() -> None:
    lines = doctor.run(doctor.REQUIRED + doctor.OPTIONAL)
    assert len(lines) == len(doctor.REQUIRED) + len(doctor.OPTIONAL)
    assert all(line.fix for line in lines if not line.good)


def test_what_is_required_and_missing_fails_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_GB", 1e9)
    assert doctor.main(["--required-only"]) == 1
    shown = capsys.readouterr().out
    assert "not ready: disk" in shown
    assert "make clean" in shown


def test_a_check_that_crashes_is_a_red_line() -> None:
    def check_nothing() -> doctor.Line:
        raise RuntimeError("broken\nsecond line")

    (line,) = doctor.run((check_nothing,))
    assert (line.name, line.good, line.found) == ("nothing", False, "broken")


def test_datasets_and_clip_weights_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotation = tmp_path / doctor.DATASET_FILES["COCO"]
    annotation.parent.mkdir(parents=True)
    annotation.write_text("{}")
    (tmp_path / "ViT-B-32.pt").write_bytes(b"")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path))
    assert doctor.check_datasets().found == "COCO"
    assert doctor.check_clip().found == "ViT-B-32.pt"
