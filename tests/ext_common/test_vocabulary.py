import copy
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common.errors import VocabularyError, WeightsError
from ext_common.vocabulary import Vocabulary, require_encoder
from ext_common.weights_io import load_tensors, save_tensors_atomic


def rows(count: int, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count)) * 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ("cat",)),
        ("cat,dog", ("cat", "dog")),
        ("  cat ,\tdog , red  square ", ("cat", "dog", "red square")),
        ('"lamp, floor" , cat', ("lamp, floor", "cat")),
        ('cat,"say ""hi"", you"', ("cat", 'say "hi", you')),
        ('12" ruler, cat', ('12" ruler', "cat")),
        ("cat,,dog,", ("cat", "dog")),
        ("Käse, 猫, tv/monitor", ("Käse", "猫", "tv/monitor")),
        ("traffic_light, bow_(weapon)", ("traffic_light", "bow_(weapon)")),
    ],
)
def test_comma_lists(text, names):
    assert Vocabulary.parse(text).names == names


plain_name = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1
).filter(lambda s: s.split())


@settings(deadline=None, max_examples=60)
@given(st.lists(plain_name, min_size=2, max_size=6, unique_by=lambda s: s.casefold()))
def test_any_names_survive_quoting(names):
    quoted = " , ".join('"' + name.replace('"', '""') + '"' for name in names)
    assert Vocabulary.parse(quoted).names == tuple(" ".join(name.split()) for name in names)


@pytest.mark.parametrize("text", ["", "  ", ",, ,", '""'])
def test_empty_vocabulary(text):
    with pytest.raises(VocabularyError, match="the vocabulary is empty"):
        Vocabulary.parse(text)


@pytest.mark.parametrize("text", ['cat, "dog', '"cat" dog, bird'])
def test_broken_quotes(text):
    with pytest.raises(VocabularyError, match="quote"):
        Vocabulary.parse(text)


@pytest.mark.parametrize(
    ("names", "both"),
    [
        (["cat", "dog", "cat"], ("'cat'", "0 and 2")),
        (["Red Square", "x", "red  square "], ("'Red Square'", "'red  square '", "0 and 2")),
        (["STRASSE", "straße"], ("'STRASSE'", "'straße'", "0 and 1")),
    ],
)
def test_duplicates_name_both(names, both):
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.from_names(names)
    assert all(part in str(caught.value) for part in both)


def test_names_must_be_texts():
    for names, match in (([], "empty"), (["a", " "], "name 1"), (["a", 3], "name 1 is 3")):
        with pytest.raises(VocabularyError, match=match):
            Vocabulary.from_names(names)
    with pytest.raises(VocabularyError, match="single string"):
        Vocabulary(names="cat")
    with pytest.raises(VocabularyError, match="1 prompts for 2 names"):
        Vocabulary.from_names(["a", "b"], ["a a"])
    with pytest.raises(VocabularyError, match="prompt 1"):
        Vocabulary.from_names(["a", "b"], ["a a", ""])


def test_many_names(tmp_path):
    names = [f"class number {i} of many" for i in range(25_000)]
    vocabulary = Vocabulary.parse(",".join(names)).with_embeddings(rows(25_000, 2), "e")
    vocabulary.save(tmp_path / "v.npz")
    again = Vocabulary.parse(tmp_path / "v.npz")
    assert again == vocabulary
    assert [again.index(name.upper()) for name in names[::1000]] == list(range(0, 25_000, 1000))


def test_text_file_is_literal(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes('\ufeffcat\r\n\r\n # 1, big \n"quoted"\n   \nKäse'.encode())
    assert Vocabulary.parse(str(path)).names == ("cat", "# 1, big", '"quoted"', "Käse")
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(VocabularyError, match=r"names\.txt.*UTF-8"):
        Vocabulary.parse(path)
    path.write_text("\n\n")
    with pytest.raises(VocabularyError, match=r"names\.txt.*empty"):
        Vocabulary.parse(path)


def test_file_name_with_commas_is_a_file(tmp_path):
    path = tmp_path / "a, b.txt"
    path.write_text("x, y\n")
    assert Vocabulary.parse(str(path)).names == ("x, y",)


def test_json_files(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(["cat", "dog"]))
    assert Vocabulary.parse(path).names == ("cat", "dog")
    categories = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat", "synonyms": ["puss"]}]
    for content in (categories, {"images": [], "categories": categories}):
        path.write_text(json.dumps(content))
        assert Vocabulary.parse(path).names == ("cat", "dog")  # rows follow the ids
    for content, match in (
        ({"a": 1}, "categories"),
        ([{"id": 1}], "no name"),
        ([{"id": "1", "name": "a"}], "no integer id"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id 1 is given twice"),
        ([], "empty"),
        (["a", 1], "name 1 is 1"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(VocabularyError, match=rf"names\.json.*{match}"):
            Vocabulary.parse(path)
    path.write_text('["a",')
    with pytest.raises(VocabularyError, match="not valid JSON"):
        Vocabulary.parse(path)


def test_missing_and_unknown_files(tmp_path):
    for spec in ("nothing.txt", str(tmp_path / "x.npy"), tmp_path / "nothing"):
        with pytest.raises(VocabularyError, match="no such file"):
            Vocabulary.parse(spec)
    (tmp_path / "names.csv").write_text("a,b")
    with pytest.raises(VocabularyError, match=r"unknown kind.*\.csv"):
        Vocabulary.parse(tmp_path / "names.csv")


@pytest.fixture
def dataset():
    name = "test_vocabulary_dataset"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = ["cat", "dog"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_dataset(dataset):
    for spec in (f"dataset:{dataset}", dataset):
        assert Vocabulary.parse(spec).names == ("cat", "dog")
    assert Vocabulary.from_dataset(dataset).names == ("cat", "dog")
    with pytest.raises(VocabularyError, match=f"test_vocabulary_datase.*did you mean {dataset}"):
        Vocabulary.parse(f"dataset:{dataset[:-1]}")
    assert dataset[:-1] not in MetadataCatalog.list()  # asking does not register


def test_dataset_that_knows_its_classes_after_loading():
    name = "test_vocabulary_lazy"

    def load():
        MetadataCatalog.get(name).thing_classes = ["bird"]
        return []

    def missing():
        raise FileNotFoundError("instances.json")

    for function in (load, missing, list):
        DatasetCatalog.register(name, function)
        try:
            if function is load:
                assert Vocabulary.from_dataset(name).names == ("bird",)
                continue
            match = "instances.json" if function is missing else "no thing_classes"
            with pytest.raises(VocabularyError, match=f"dataset:{name}.*{match}"):
                Vocabulary.from_dataset(name)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_needs_names(tmp_path, dtype):
    path, emb_CD = tmp_path / "emb.npy", rows(2).numpy().astype(dtype)
    np.save(path, emb_CD)
    with pytest.raises(VocabularyError, match=r"emb\.npy.*no class names.*beside"):
        Vocabulary.parse(path)
    expected = torch.from_numpy(emb_CD.astype(np.float32))
    given = Vocabulary.parse(path, names=["cat", "dog"], encoder_id="clip")
    generated = Vocabulary.parse(path, generate_names=True)
    (tmp_path / "emb.txt").write_text("a\nb\n")
    beside = Vocabulary.parse(path)
    for vocabulary, names in (
        (given, ("cat", "dog")),
        (generated, ("class_0", "class_1")),
        (beside, ("a", "b")),
    ):
        assert vocabulary.names == names
        assert vocabulary.embeddings_CD.dtype == torch.float32
        assert torch.equal(vocabulary.embeddings_CD, expected)
    assert (given.encoder_id, beside.encoder_id) == ("clip", "")
    with pytest.raises(VocabularyError, match="twice"):
        Vocabulary.parse("cat, dog", names=["a", "b"])


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".pt"])
@pytest.mark.parametrize("prompts", [None, ("a cat, really", "one “dog”")])
def test_saving_and_reading(tmp_path, suffix, prompts):
    path = tmp_path / f"v{suffix}"
    vocabulary = Vocabulary.from_embeddings(["cat", "hot dog"], rows(2), "clip/x", prompts)
    vocabulary.save(path)
    assert Vocabulary.parse(path) == vocabulary
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    other = Vocabulary.parse(path, names=["katze", "hund"], encoder_id="ignored")
    assert other.names == ("katze", "hund")
    assert other.encoder_id == "clip/x"  # what the file says wins


def test_saving_what_cannot_be_saved(tmp_path):
    names = Vocabulary.from_names(["a"])
    names.save(tmp_path / "n.pth")
    assert Vocabulary.parse(tmp_path / "n.pth") == names
    with pytest.raises(VocabularyError, match="no embeddings"):
        names.save(tmp_path / "n.npz")
    with pytest.raises(VocabularyError, match="cannot save"):
        names.save(tmp_path / "n.csv")
    with pytest.raises(WeightsError, match="cannot be written"):
        names.with_embeddings(rows(1), "e").save(tmp_path / "missing" / "n.npz")


def test_bare_tensor_and_foreign_files(tmp_path):
    save_tensors_atomic(rows(3), tmp_path / "t.pth")
    assert len(Vocabulary.parse(tmp_path / "t.pth", names=["a", "b", "c"])) == 3
    save_tensors_atomic({"model": rows(3)}, tmp_path / "m.pth")
    with pytest.raises(VocabularyError, match=r"m\.pth.*without names or embeddings"):
        Vocabulary.parse(tmp_path / "m.pth")
    np.savez(tmp_path / "x.npz", other=rows(3).numpy())
    with pytest.raises(VocabularyError, match=r"x\.npz.*\['other'\]"):
        Vocabulary.parse(tmp_path / "x.npz")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(VocabularyError, match=r"o\.npy.*not a readable"):
        Vocabulary.parse(tmp_path / "o.npy", generate_names=True)
    np.save(tmp_path / "i.npy", np.ones((2, 2), int))
    with pytest.raises(VocabularyError, match=r"i\.npy.*int64"):
        Vocabulary.parse(tmp_path / "i.npy", generate_names=True)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pth"])
def test_truncated_embedding_files(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    if suffix == ".npy":
        np.save(path, rows(2).numpy())
    else:
        Vocabulary.from_embeddings(["a", "b"], rows(2), "e").save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises((VocabularyError, WeightsError), match=path.name):
        Vocabulary.parse(path, names=["a", "b"])


def bad(change) -> torch.Tensor:
    emb_CD = rows(3)
    change(emb_CD)
    return emb_CD


@pytest.mark.parametrize(
    ("emb_CD", "match"),
    [
        (rows(2), r"\[2, 4\] for 3 names.*expected \[3, D\]"),
        (rows(4, 3), "transpose"),
        (rows(0), r"\[0, 4\] for 3 names"),
        (rows(3)[0], r"\[4\] for 3 names"),
        (torch.zeros(3, 0), r"\[3, 0\]"),
        (torch.ones(3, 2, dtype=torch.int64), "int64"),
        (bad(lambda e: e[1, 2].fill_(float("nan"))), r"1 of 3.*not finite.*rows 1 \(b\)"),
        (bad(lambda e: e[1:, 0].fill_(float("inf"))), r"2 of 3.*not finite.*1 \(b\), 2 \(c\)"),
        (bad(lambda e: e[2].zero_()), r"all zero.*2 \(c\)"),
    ],
)
def test_unusable_embeddings(tmp_path, emb_CD, match):
    with pytest.raises(VocabularyError, match=match):
        Vocabulary.from_embeddings(["a", "b", "c"], emb_CD, "e")
    np.save(tmp_path / "e.npy", emb_CD.numpy())
    with pytest.raises(VocabularyError, match=r"e\.npy"):
        Vocabulary.parse(tmp_path / "e.npy", names=["a", "b", "c"])


def test_half_precision_overflow_is_found():
    with pytest.raises(VocabularyError, match="not finite"):
        Vocabulary.from_embeddings(["a"], torch.tensor([[1e300, 1.0]], dtype=torch.float64), "e")


def test_immutable_and_independent_of_its_source():
    source = rows(2)
    vocabulary = Vocabulary.from_embeddings(["a", "b"], source, "e")
    before = vocabulary.embeddings_CD.clone()
    source.zero_()
    assert torch.equal(vocabulary.embeddings_CD, before)
    vocabulary.state_dict()["embeddings"].zero_()
    assert torch.equal(vocabulary.embeddings_CD, before)
    with pytest.raises(AttributeError):
        vocabulary.names = ("c",)
    other = vocabulary.with_embeddings(rows(2, 3), "f")
    assert torch.equal(vocabulary.embeddings_CD, before)
    assert (other.names, other.encoder_id, other.embeddings_CD.shape) == (("a", "b"), "f", (2, 3))


def test_gradients_do_not_come_along():
    vocabulary = Vocabulary.from_embeddings(["a"], rows(1).requires_grad_(), "e")
    assert not vocabulary.embeddings_CD.requires_grad


def test_equality_and_copies():
    first = Vocabulary.from_embeddings(["a", "b"], rows(2), "e")
    same = Vocabulary.from_embeddings([" a", "b"], rows(2).double(), "e")
    assert first == same
    assert hash(first) == hash(same)
    assert first == copy.deepcopy(first) == pickle.loads(pickle.dumps(first))
    for other in (
        Vocabulary.from_names(["a", "b"]),
        Vocabulary.from_embeddings(["a", "b"], rows(2) + 1, "e"),
        Vocabulary.from_embeddings(["a", "b"], rows(2), "f"),
        Vocabulary.from_embeddings(["b", "a"], rows(2), "e"),
        Vocabulary.from_embeddings(["a", "b"], rows(2), "e", ["x", "y"]),
        "a, b",
    ):
        assert first != other
    assert "2 names: a, b" in repr(first)


def test_index_suggests():
    vocabulary = Vocabulary.from_names(["Traffic light", "car"])
    assert vocabulary.index(" traffic  LIGHT") == 0
    with pytest.raises(VocabularyError, match="no class 'trafic light'.*'Traffic light'"):
        vocabulary.index("trafic light")


@pytest.mark.parametrize("embedded", [False, True])
def test_state_dict_through_a_tensors_only_checkpoint(tmp_path, embedded):
    vocabulary = Vocabulary.from_names(["a", "b"], ["an a", "a b"])
    if embedded:
        vocabulary = vocabulary.with_embeddings(rows(2), "e")
    save_tensors_atomic({"model": {}, "vocabulary": vocabulary.state_dict()}, tmp_path / "c.pth")
    loaded = load_tensors(tmp_path / "c.pth")["vocabulary"]
    assert Vocabulary.from_state_dict(loaded) == vocabulary
    with pytest.raises(VocabularyError, match="format 9"):
        Vocabulary.from_state_dict({**loaded, "format": 9})
    for nothing in ({}, [1]):
        with pytest.raises(VocabularyError, match="no names"):
            Vocabulary.from_state_dict(nothing)


def test_require_encoder(caplog):
    vocabulary = Vocabulary.from_embeddings(["a", "b"], rows(2), "clip/x")
    assert require_encoder(vocabulary, "clip/x", 4) is vocabulary.embeddings_CD
    with pytest.raises(VocabularyError, match=r"\[2, 4\], expected \[2, 512\]"):
        require_encoder(vocabulary, "clip/x", 512)
    with pytest.raises(VocabularyError, match="'clip/x'.*'hash-v1-4'"):
        require_encoder(vocabulary, "hash-v1-4", 4)
    with pytest.raises(VocabularyError, match="no embeddings"):
        require_encoder(Vocabulary.from_names(["a"]), "clip/x", 4)
    assert not caplog.records
    unknown = Vocabulary.from_embeddings(["a", "b"], rows(2), "")
    assert require_encoder(unknown, "clip/x", 4).shape == (2, 4)
    assert "unknown" in caplog.text


def test_threads_do_not_share_anything():
    results: dict[int, Vocabulary] = {}

    def work(thread: int) -> None:
        for turn in range(50):
            names = [f"{thread} {turn} {i}" for i in range(20)]
            results[thread] = Vocabulary.parse(", ".join(names))
            assert results[thread].index(names[7]) == 7

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert results[i].names == tuple(f"{i} 49 {j}" for j in range(20))
