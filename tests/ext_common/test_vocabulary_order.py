"""Whether lists of names stand for the same classes, and what checks of datasets make of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from ext_common.config import get_config
from ext_common.data.dataset_checks import check_datasets, check_test_dataset
from ext_common.data.dataset_registry import unregister
from ext_common.errors import DatasetError
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_order import first_misplaced, known_names, spelling_key
from tests.ext_common.annotation_files import content, write


@pytest.mark.parametrize(
    ("names", "others", "row"),
    [
        ("disc|square", "square|disc", 0),
        ("a|disc|square", "A|square|disc", 1),
        ("aerosol_can|baby_buggy|bow_(weapon)", "Aerosol Can|baby-buggy|bow weapon", None),
        ("cat|dog|hair drier", "cat|dog|hair dryer", None),
        ("cat|dog|cow", "Katze|Hund|cow", 0),
        ("cat|dog|cow", "dog|wolf|cow", 1),
        ("dog|wolf|cow", "cat|dog|cow", 0),
        ("red disc|red ring|blue disc", "reddisc|redhoop|bluedisc", None),
        ("vehicle", "car", None),
        ("1|2|3", "cat|dog|cow", None),
        ("cat|dog|cow", "0|1|2", None),
        ("1|2|3", "0|1|2", None),
        ("class_1|class_2", "0|1", None),
        ("0|1", "1|0", 0),
    ],
)
def test_where_two_lists_part(names: str, others: str, row: int | None) -> None:
    assert first_misplaced(names.split("|"), others.split("|")) == row


def test_a_vocabulary_may_give_codes_their_names() -> None:
    codes, names = ["n01440764", "n01443537", "n01484850"], ["tench", "goldfish", "shark"]
    assert first_misplaced(codes, names) == 0
    assert first_misplaced(codes, names, renamed=True) is None
    assert first_misplaced(["disc", "square"], ["square", "disc"], renamed=True) == 0


def test_spellings_and_names_that_were_made_up() -> None:
    assert spelling_key(" Salad-plate_(dish, large)") == "saladplatedishlarge"
    assert known_names(("class_0", "class_1")) is None
    assert known_names(("class_1", "class_0")) == ("class_1", "class_0")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A file that registers ``ord_abc`` with the classes a, b, c and ``ord_abcd`` with one more."""
    (tmp_path / "images").mkdir()
    entries = {}
    for name, classes in (("ord_abc", ("a", "b", "c")), ("ord_abcd", ("a", "b", "c", "d"))):
        write(tmp_path / f"{name}.json", content([(8, 9)], classes=classes))
        entries[name] = {"type": "lvis", "json": f"{name}.json", "images": "images"}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    yield str(tmp_path / "sets.yaml")
    for name in entries:
        unregister(name)


@pytest.mark.parametrize("kind", ["list", "txt", "npz"])
def test_a_vocabulary_in_another_order_is_refused(registry: str, tmp_path: Path, kind: str) -> None:
    cfg = get_config()
    cfg.DATASETS.REGISTRY, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (registry,), ("ord_abc",), ()

    def spell(*names: str) -> str:
        if kind == "list":
            return ",".join(names)
        path = tmp_path / f"names.{kind}"
        if kind == "txt":
            path.write_text("\n".join(names))
        else:
            Vocabulary.from_embeddings(names, torch.ones(len(names), 4), "x").save(path)
        return str(path)

    cfg.MODEL.VOCABULARY = spell("A", "b", "c")
    check_datasets(cfg, training=True)
    check_test_dataset(cfg, "ord_abc")
    cfg.MODEL.VOCABULARY = spell("a", "c", "b")
    message = r"'ord_abc': class 1 is 'b' here and 'c' in MODEL\.VOCABULARY .*dataset:ord_abc\)"
    with pytest.raises(DatasetError, match=message):
        check_datasets(cfg, training=True)
    with pytest.raises(DatasetError, match=message):
        check_test_dataset(cfg, "ord_abc")
    # no dataset is concerned
    check_datasets(cfg, training=False)


def test_a_shorter_training_set_is_compared_with_its_complete_one(registry: str) -> None:
    cfg = get_config()
    cfg.DATASETS.REGISTRY, cfg.DATASETS.TEST = (registry,), ()
    cfg.DATASETS.TRAIN, cfg.MODEL.VOCABULARY = ("ord_abc", "ord_abcd"), "a, b, c, d"
    check_datasets(cfg, training=True)
    cfg.MODEL.VOCABULARY = "a, b, d, c"
    with pytest.raises(DatasetError, match="'ord_abcd': class 2 is 'c' here and 'd' in"):
        check_datasets(cfg, training=True)
