"""The experiment of benchmarks/claims/soco.py with two steps for each run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.claims import soco


def test_quick_run_makes_table_and_plot_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(tmp_path / "run"), "--quick"]
    assert soco.main(words) == 0, capsys.readouterr().err
    lines = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert lines[0] == "| | AP | AP50 | objects named | seeds |"
    titles = [line.split("|")[1].strip() for line in lines[2:]]
    assert titles == [title for title, _ in soco.METHODS.values()]
    assert all(line.endswith("| 1 |") for line in lines[2:])
    assert (tmp_path / "run" / "plot.png").stat().st_size > 5000
    for method in soco.METHODS:
        folder = tmp_path / "run" / f"finetune-{method}-seed0"
        assert json.loads((folder / "results.json").read_text())
        if method != soco.SCRATCH:
            assert (tmp_path / "run" / f"pretrain-{method}-seed0.pkl").is_file()
    capsys.readouterr()

    assert soco.main(words) == 0
    again = capsys.readouterr().out
    assert "[20/20]" not in again
    assert again.count("finished before") == 17
    assert "$ python" not in again

    assert soco.main([*words, "--labelled", "7"]) == 1
    assert "other settings: sizes" in capsys.readouterr().err


def test_first_seed_names_the_runs_and_a_changed_recipe_is_another_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        soco.Runner, "run_chains", lambda _, chains: ran.extend(s.title for c in chains for s in c)
    )
    words = ["--output", str(tmp_path / "run"), "--first-seed", "100", "--seeds", "2"]
    assert soco.main(words) == 1  # nothing was run: there are no results to read
    assert "fine-tuning soco seed101" in ran
    assert not any("seed0" in title or "seed102" in title for title in ran)
    capsys.readouterr()

    monkeypatch.setattr(soco, "FINETUNE", "soco/Mask_R50_FPN_1x.yaml")
    assert soco.main(words) == 1
    assert "other settings: recipes" in capsys.readouterr().err


def test_the_naming_of_objects_builds_what_was_pretrained(tmp_path: Path) -> None:
    options = ("SOCO.EMBEDDING_DIM", "32")
    experiment = soco.Experiment(tmp_path, soco.QUICK, pretrain_opts=options)
    for method in soco.METHODS:
        (naming,) = (s for s in experiment.chain(method, 0) if s.tool == "object_naming")
        assert naming.words[-3:] == ("--opts", *options)


def test_the_page_describes_the_usual_sizes() -> None:
    page = " ".join((soco.ROOT / "docs" / "soco.md").read_text(encoding="utf-8").split())
    sizes = soco.Sizes()
    assert f"{sizes.pretrain_steps} steps of {sizes.pretrain_batch} pictures" in page
    assert f"{sizes.finetune_steps} steps of {sizes.finetune_batch} pictures" in page
    assert f"({2 * sizes.unlabelled:,} pictures, on painted backgrounds)" in page
    assert f"fine-tuned on {sizes.labelled} labelled scenes" in page
    assert f"scored on {sizes.val} others" in page


def test_wrong_counts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        soco.main(["--output", str(tmp_path / "run"), "--seeds", "0"])
    assert "--seeds is 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
