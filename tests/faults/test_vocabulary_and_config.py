"""Cases 15, 22 and 24 to 30 of docs/reliability.md: vocabularies, configuration, command line."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ext_common import packages
from ext_common.config import load_config, validate_config
from ext_common.data.batching import batch_per_process
from ext_common.errors import ConfigError, VocabularyError, WeightsError
from ext_common.text_encoder import HashTextEncoder, build_text_encoder, embed_vocabulary
from ext_common.vocabulary import Vocabulary, require_encoder
from tests.dist.tiny_training import MODEL, TinyRun, write_run
from tests.faults.killed_run import in_new_process, run_tool
from tools import train_net


def refusal(run: TinyRun, *words: str) -> str:
    """The last line of tools/train_net.py, which must end with an error before it trains."""
    errors = run.config_file.with_name("errors.txt")
    given = ["--config-file", str(run.config_file), *words]
    assert in_new_process(lambda: run_tool(given, errors)) == 1
    text = errors.read_text()
    assert "Traceback" not in text
    assert not list(run.output.glob("*.pth"))
    return text.strip().splitlines()[-1]


def test_case_22_fewer_images_than_processes_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH 2 .* each of 8 processes.*multiple of 8"):
        batch_per_process(2, 8)
    with pytest.raises(ConfigError, match="12 cannot be divided among 8"):
        batch_per_process(12, 8)


@pytest.mark.parametrize("spec", ["", " , ,", "cat, Cat", "traffic  light,traffic light"])
def test_case_24_empty_or_repeated_names_are_refused(spec: str) -> None:
    with pytest.raises(VocabularyError):
        Vocabulary.parse(spec)


def test_case_24_commas_blanks_and_25000_names() -> None:
    assert Vocabulary.parse(' a  cat,"bowl, deep",dog ').names == ("a cat", "bowl, deep", "dog")
    many = Vocabulary.from_names([f"thing {number}" for number in range(25_000)])
    assert embed_vocabulary(many, HashTextEncoder(8), ["{}"]).embeddings_CD is not None
    assert many.index("thing 24999") == 24_999


@pytest.mark.parametrize(
    ("emb_CD", "text"),
    [
        (torch.ones(3, 4), r"\[2, "),
        (torch.ones(4), r"\[4\]"),
        (torch.tensor([[1.0, float("nan")], [1.0, 1.0]]), "a"),
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "b"),
    ],
)
def test_case_25_unusable_embeddings_are_refused(emb_CD: torch.Tensor, text: str) -> None:
    with pytest.raises(VocabularyError, match=text):
        Vocabulary.from_embeddings(["a", "b"], emb_CD, "encoder")


def test_case_25_embeddings_of_another_encoder_or_width_do_not_fit_the_head() -> None:
    words = Vocabulary.from_embeddings(["a"], torch.ones(1, 4), "encoder-1")
    with pytest.raises(VocabularyError, match="encoder-2"):
        require_encoder(words, "encoder-2", 4)
    with pytest.raises(VocabularyError, match="8"):
        require_encoder(words, "encoder-1", 8)


def test_case_26_two_vocabularies_and_two_threads_do_not_meet() -> None:
    def embedded(names: list[str]) -> Vocabulary:
        return embed_vocabulary(Vocabulary.from_names(names), HashTextEncoder(16), ["a {}"])

    asked = [["cat", "dog"], ["dog"], ["cat", "dog", "tree"]] * 8
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(embedded, asked))
    for names, vocabulary in zip(asked, found, strict=True):
        assert vocabulary == embedded(names)


def test_case_27_missing_text_weights_say_what_is_missing_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    cfg = load_config("", ["MODEL.TEXT_ENCODER.NAME", "ViT-B-32-quickgelu"])
    with pytest.raises(WeightsError) as missing:
        build_text_encoder(cfg.MODEL.TEXT_ENCODER)
    for part in (str(tmp_path), ".pt", "MODEL.TEXT_ENCODER.WEIGHTS", "ALLOW_DOWNLOAD"):
        assert part in str(missing.value)


def own_tag(folder: Path) -> str:
    return f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{folder / 'trap'}']"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("SOLVER: {MAX_ITR: 3}", ["SOLVER.MAX_ITR", "SOLVER.MAX_ITER"]),
        ("SOLVER: {MAX_ITER: many}", ["MAX_ITER", "int"]),
        ("SEED: 1\nSEED: 2", ["SEED", "lines 1 and 2"]),
        ("_BASE_: bad.yaml", ["bad.yaml", "_BASE_"]),
        (own_tag, ["object tags"]),
    ],
)
def test_case_28_a_config_that_cannot_be_meant_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | Callable[[Path], str],
    parts: list[str],
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text if isinstance(text, str) else text(tmp_path))
    assert train_net.main(["--config-file", str(path)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    for part in ["bad.yaml", *parts]:
        assert part in line
    assert not (tmp_path / "trap").exists()


@pytest.mark.timeout(600)
def test_case_29_a_batch_smaller_than_the_processes_is_refused_at_the_start(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    line = refusal(run, "SOLVER.IMS_PER_BATCH", "0")
    assert "IMS_PER_BATCH" in line
    line = refusal(run, "--num-gpus", "2", "SOLVER.IMS_PER_BATCH", "1")
    assert "SOLVER.IMS_PER_BATCH 1 is less than one image for each of 2 processes" in line
    assert "set it to a multiple of 2" in line
    assert not (run.output / "metrics.json").exists()


def test_case_29_an_image_label_loss_needs_image_labels() -> None:
    packages.register_all()
    cfg = load_config(
        "",
        ["MODEL.META_ARCHITECTURE", "CustomRCNN", "WITH_IMAGE_LABELS", "True"]
        + ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
    )
    with pytest.raises(ConfigError, match="no training dataset has image labels"):
        validate_config(cfg, training=True)


def test_case_29_masks_need_annotations_with_masks(tmp_path: Path) -> None:
    run = write_run(tmp_path, MODEL={**MODEL, "MASK_ON": True})
    line = refusal(run)
    assert "MODEL.MASK_ON" in line


def test_case_30_a_folder_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "file").write_text("")
    line = refusal(run, "OUTPUT_DIR", str(tmp_path / "file" / "output"))
    assert "OUTPUT_DIR: cannot write to" in line
    run.output.mkdir()
    (run.output / "metrics.json").write_text("{}\n")
    line = refusal(run)
    assert "--resume" in line
    assert "--overwrite" in line


def test_case_30_a_full_disk_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    run = write_run(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert "OUTPUT_DIR" in refusal(run)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of two iterations that waits for its continuation."""
    run = write_run(tmp_path_factory.mktemp("begun"), SOLVER={"MAX_ITER": 4})
    assert begin(run, "SOLVER.TRAIN_ITER", "2") == ""
    return run


def begin(run: TinyRun, *words: str) -> str:
    """tools/train_net.py; its last line where it ended with an error, else an empty text."""
    errors = run.config_file.with_name("errors.txt")
    given = ["--config-file", str(run.config_file), *words]
    code = in_new_process(lambda: run_tool(given, errors))
    assert code in (0, 1)
    return errors.read_text().strip().splitlines()[-1] if code else ""


def copy(run: TinyRun, folder: Path) -> list[str]:
    """The output of a run in another folder; the words that say so."""
    shutil.copytree(run.output, folder)
    return ["--resume", "OUTPUT_DIR", str(folder)]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("SOLVER.BASE_LR", "0.02", "SOLVER.BASE_LR was 0.01, is 0.02"),
        ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.IMS_PER_BATCH was 2, is 4"),
        ("SOLVER.STEPS", "(3,)", "SOLVER.STEPS was [], is [3]"),
        ("SEED", "8", "SEED was 7, is 8"),
        ("DATASETS.TRAIN", "('{val}',)", "DATASETS.TRAIN was "),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", "17", "MODEL.ROI_BOX_HEAD.FC_DIM was 16, is 17"),
    ],
    ids=["rate", "batch", "schedule", "seed", "data", "model"],
)
def test_case_30_a_run_is_not_continued_with_a_configuration_that_changes_it(
    tmp_path: Path, begun: TinyRun, key: str, value: str, said: str
) -> None:
    words = copy(begun, tmp_path / "output")
    before = {path.name: path.read_bytes() for path in (tmp_path / "output").glob("*.[py]*")}
    line = begin(begun, *words, key, value.format(val=begun.val))
    assert said in line
    assert "--overwrite" in line
    assert "--allow-change" in line
    assert "workers, periods, output and evaluation may differ freely" in line
    # neither the checkpoints nor the recorded configuration
    assert {name: (tmp_path / "output" / name).read_bytes() for name in before} == before


def test_case_30_what_changes_nothing_or_is_allowed_may_differ(
    tmp_path: Path, begun: TinyRun
) -> None:
    words = copy(begun, tmp_path / "output")
    free = ["DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "9"]
    # a learning rate that stays constant does not depend on the end
    assert begin(begun, *words, *free, "SOLVER.TRAIN_ITER", "3", "SOLVER.MAX_ITER", "9") == ""
    assert load_config(tmp_path / "output" / "config.yaml").SOLVER.MAX_ITER == 9
    allowed = ["--allow-change", "SOLVER.BASE_LR", "--allow-change", "SE*"]
    assert begin(begun, *allowed, *words, "SOLVER.BASE_LR", "0.02", "SEED", "8") == ""
    state = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 3
    assert yaml.safe_load(state["config"]["yaml"])["SEED"] == 8
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "Differs from the interrupted run: SOLVER.BASE_LR was 0.01, is 0.02" in log
