"""The concept pool: lists, nouns, counts, embeddings and their cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ext_common.errors import DatasetError, VocabularyError
from ext_common.text_encoder import HashTextEncoder
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_prompts import fill, lvis_name
from regionclip_ext.concepts import embedding
from regionclip_ext.concepts.caption_files import read_captions
from regionclip_ext.concepts.concept_list import (
    Concept,
    names_of,
    read_concepts,
    write_concepts,
)
from regionclip_ext.concepts.counting import NounCounts, count_nouns
from regionclip_ext.concepts.embedding import embed_concepts
from regionclip_ext.concepts.embedding_files import write_embeddings
from regionclip_ext.concepts.nouns import build_tagger, nouns_of
from regionclip_ext.concepts.templates import imagenet_templates
from tests.regionclip_ext.pair_files import caption, write_tar


class _Counted:
    """A hash encoder that counts texts, and stops after a number of calls."""

    def __init__(self, calls: int = -1) -> None:
        self._encoder = HashTextEncoder(16)
        self.encoder_id, self.dim = "counted", 16
        self.texts: list[str] = []
        self.calls = calls

    def encode(self, texts: Sequence[str]) -> Tensor:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.texts += texts
        return 3 * self._encoder.encode(texts) + 1  # neither unit length nor zero mean


def test_list_of_the_authors_and_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "coco_nouns_3.txt"
    file.write_text("man,1234\nfire hydrant, 12\nsky\n")
    concepts = read_concepts(file)
    assert concepts == [Concept("man", 1234), Concept("fire hydrant", 12), Concept("sky")]
    write_concepts(file, concepts)
    assert read_concepts(file) == concepts
    assert names_of(concepts) == ["man", "fire hydrant", "sky"]
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as some editors save it
    assert read_concepts(file) == concepts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("man,1\n\nsky,2\n", "line 2 is empty"),
        ("man,1\n,2\n", "line 2 has no concept"),
        ("man,1\nsky,3\nMan ,2\n", "line 3 repeats 'Man' of line 1"),
        ("", "line 1 is empty"),
    ],
    ids=["empty", "nameless", "twice", "nothing"],
)
def test_bad_lines_of_a_list_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(content)
    with pytest.raises(VocabularyError, match=message):
        read_concepts(file)


def test_nouns_of_captions() -> None:
    tagger = build_tagger()

    def names(caption: str, **options: bool) -> list[str]:
        return [noun.name for noun in nouns_of(caption, tagger, **options)]

    assert names("A man riding a wave on top of a SURFBOARD.") == ["man", "wave", "surfboard"]
    assert names("A bathroom with a sink, mirror and toilet.") == [
        "bathroom",
        "sink",
        "mirror",
        "toilet",
    ]
    assert names("red fire hydrants") == ["hydrants"]
    assert names("red fire hydrants", compounds=True) == ["hydrants", "fire hydrants"]


def test_plurals_merge_into_singulars_that_occur_and_rare_or_stopped_nouns_go() -> None:
    tagger = build_tagger()
    captions = ["a dog", "two dogs", "a bench", "a photo of glasses", "many glasses", "a cow"]
    counts = count_nouns(captions, tagger)
    assert counts.captions == 6
    found = {c.name: c.count for c in counts.concepts(frequency=2)}
    assert found == {"dog": 2, "glasses": 2}
    everything = counts.concepts(frequency=1, stop=("cow",))
    assert [c.name for c in everything] == ["dog", "glasses", "bench", "photo"]
    compounds = NounCounts()
    for text in ("a fire hydrant", "fire hydrants"):
        compounds.add(text, tagger, compounds=True)
    merged = {c.name: c.count for c in compounds.concepts(frequency=1, stop=())}
    assert merged == {"hydrant": 2, "fire hydrant": 2}


def test_captions_of_every_kind_of_file(tmp_path: Path) -> None:
    files = {
        "cc3m.tsv": "a dog\thttp://x.y/a.jpg\n\nthe sky\thttps://x.y/b.jpg\n",
        "pairs.text.tsv": 'k1\ta dog\nk2\t{"captions": ["the sky"]}\n',
        "plain.txt": "a dog\n\nthe sky\n",
        "coco.json": json.dumps(
            {"images": [], "annotations": [{"caption": "a dog"}, {"caption": "the sky "}]}
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert list(read_captions(tmp_path / name)) == ["a dog", "the sky"], name
    archive = write_tar(tmp_path / "pairs.tar")
    assert list(read_captions(archive)) == [caption(number) for number in range(3)]
    archive.rename(tmp_path / "pairs.bin")
    with pytest.raises(DatasetError, match="pairs.bin: no text, not a caption a line.*COCO's"):
        list(read_captions(tmp_path / "pairs.bin"))
    (tmp_path / "pairs.jsonl").write_text('{"caption": "a dog"}\n{"caption": "the sky"}\n')
    with pytest.raises(DatasetError, match="JSON objects, not a caption a line"):
        list(read_captions(tmp_path / "pairs.jsonl"))
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(DatasetError, match="no captions"):
        list(read_captions(tmp_path / "none.txt"))
    (tmp_path / "bad.json").write_text('{"annotations": [{"caption": 3}]}')
    with pytest.raises(DatasetError, match="annotation 0 has no caption"):
        list(read_captions(tmp_path / "bad.json"))


def test_81_templates_and_cleaned_names() -> None:
    templates = imagenet_templates()
    assert len(set(templates)) == len(templates) == 81
    assert templates[0] == "{}."
    assert fill(templates[0], "salt, pepper+oil") == "salt pepper oil."
    assert lvis_name("baseball_bat_(sport)") == "baseball bat sport"


def test_means_are_the_authors_and_clips() -> None:
    templates = ("{}.", "a photo of a {}.", "{} there")
    names = ["cat", "traffic light"]
    encoder = _Counted()
    feats = torch.stack(
        [torch.stack([encoder.encode([fill(t, n)])[0] for t in templates]) for n in names]
    )
    raw = embed_concepts(names, encoder, templates)
    assert torch.allclose(raw, feats.mean(dim=1), atol=1e-6)
    normalized = embed_concepts(names, encoder, templates, mean="normalized")
    expected = (feats / feats.norm(dim=2, keepdim=True)).mean(dim=1)
    assert torch.allclose(normalized, expected, atol=1e-6)
    assert not torch.allclose(raw, normalized, atol=1e-2)


def test_embeddings_are_cached_by_content_and_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 4)
    names, templates = [f"name{n}" for n in range(10)], ("{}.", "a {}")
    stopped = _Counted(calls=2)
    with pytest.raises(KeyboardInterrupt):
        embed_concepts(names, stopped, templates, cache_dir=tmp_path)
    assert len(stopped.texts) == 16
    rest, done = _Counted(), []
    emb = embed_concepts(names, rest, templates, cache_dir=tmp_path, progress=done.append)
    assert len(rest.texts) == 4  # the last two names
    assert done == [4, 8, 10]
    assert torch.allclose(emb, embed_concepts(names, _Counted(), templates))
    second = _Counted(calls=0)
    assert torch.equal(embed_concepts(names, second, templates, cache_dir=tmp_path), emb)
    changed = _Counted()
    embed_concepts(names, changed, ("{}.", "one {}"), cache_dir=tmp_path)
    assert len(changed.texts) == 20


def test_embedding_files_go_both_ways(tmp_path: Path) -> None:
    emb = torch.randn(3, 8)
    names = ["cat", "dog", "traffic light"]
    written = write_embeddings(tmp_path / "pool.pth", names, emb, "clip")
    # as torch's users and the authors read it: one bare tensor
    assert torch.equal(torch.load(tmp_path / "pool.pth", weights_only=True), emb)
    assert names_of(read_concepts(written[1])) == names
    ours = Vocabulary.from_file(tmp_path / "pool.pth", generate_names=True).embeddings_CD
    assert torch.equal(ours, emb)
    write_embeddings(tmp_path / "pool.npz", names, emb, "clip")
    vocabulary = Vocabulary.from_file(tmp_path / "pool.npz")
    assert (vocabulary.names, vocabulary.encoder_id) == (tuple(names), "clip")
    assert torch.equal(vocabulary.embeddings_CD, emb)
    write_embeddings(tmp_path / "one.pth", names[:1], emb[:1], "clip")
    assert torch.load(tmp_path / "one.pth", weights_only=True).shape == (8,)  # as published
    one = Vocabulary.from_file(tmp_path / "one.pth")
    assert one.names == ("cat",)
    assert torch.equal(one.embeddings_CD, emb[:1])
    assert len(Vocabulary.from_file(tmp_path / "one.pth", generate_names=True)) == 1
    with pytest.raises(VocabularyError, match=r"shape \[1, 8\] for 3 names"):
        Vocabulary.from_file(tmp_path / "one.pth", names=names)
