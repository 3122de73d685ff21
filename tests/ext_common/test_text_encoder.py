import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ext_common.config import get_config
from ext_common.errors import ConfigError, VocabularyError, WeightsError
from ext_common.text_encoder import (
    HashTextEncoder,
    embed_vocabulary,
    load_vocabulary,
)
from ext_common.vocabulary import Vocabulary


class CountingEncoder(HashTextEncoder):
    """Remembers what it was asked, and does not normalise."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(dim)
        self.asked: list[str] = []

    def encode(self, texts):
        self.asked += texts
        lengths = torch.tensor([[float(len(text))] for text in texts])
        return super().encode(texts) * lengths


def cosines(texts: list[str], dim: int = 512) -> torch.Tensor:
    features = HashTextEncoder(dim).encode(texts)
    return features @ features.t()


def test_hash_encoder_puts_a_text_between_its_words():
    cos = cosines(["red square", "red disc", "blue square", "green star", "red", "square"])
    for neighbour in (1, 2):
        assert abs(cos[0, neighbour] - 0.5) < 0.15
    assert abs(cos[0, 3]) < 0.15
    assert abs(cos[1, 2]) < 0.15
    # halfway: the normalised sum of the two words
    features = HashTextEncoder().encode(["red square", "red", "square"])
    middle = torch.nn.functional.normalize(features[1] + features[2], dim=0)
    assert torch.allclose(features[0], middle, atol=1e-6)


def test_hash_encoder_ignores_case_order_and_signs():
    encoder = HashTextEncoder(64)
    same = encoder.encode(["red square", "Square, RED!", "red_square"])
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-6)
    assert not torch.allclose(encoder.encode(["red squares"]), same[:1], atol=1e-1)


def test_hash_encoder_basics():
    encoder = HashTextEncoder(33)
    assert (encoder.dim, encoder.encode([]).shape) == (33, (0, 33))
    features = encoder.encode(["a", "?!", "", "a a b"])
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=1), torch.ones(4), atol=1e-6)
    assert encoder.encoder_id != HashTextEncoder(34).encoder_id
    # more texts than are encoded at once: the same as in pieces
    texts = [f"thing {i} of {i % 7}" for i in range(5000)]
    whole = encoder.encode(texts)
    assert torch.allclose(whole[4090:4100], encoder.encode(texts[4090:4100]), atol=1e-6)
    # unrelated words are nearly orthogonal and vectors look Gaussian
    many = HashTextEncoder(256).encode([f"word{i}" for i in range(300)])
    off = (many @ many.t())[~torch.eye(300, dtype=torch.bool)]
    assert abs(off.mean()) < 0.01
    assert abs(off.std() - 256**-0.5) < 0.01
    assert abs((many * 16).pow(4).mean() - 3) < 0.2
    with pytest.raises(ConfigError, match=r"TEXT_ENCODER\.DIM"):
        HashTextEncoder(0)


def test_hash_encoder_is_the_same_in_every_process_and_version():
    # written down once: a change of these numbers needs a new version in encoder_id
    encoder = HashTextEncoder(4)
    assert encoder.encoder_id == "hash-v1-4"
    expected = torch.tensor(
        [
            [-0.5078497, 0.6659634, 0.5129467, 0.1883270],
            [-0.5173925, 0.4554006, -0.4476875, 0.5696414],
        ]
    )
    assert torch.allclose(encoder.encode(["red square", "disc"]), expected, atol=1e-6)
    code = (
        "from ext_common.text_encoder import HashTextEncoder as H;"
        "print(H(4).encode(['red square', 'disc']).tolist())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert torch.equal(torch.tensor(json.loads(run.stdout)), encoder.encode(["red square", "disc"]))


def test_templates_are_filled_and_averaged():
    vocabulary, encoder = Vocabulary.from_names(["cat", "{x} dog"]), CountingEncoder()
    one = embed_vocabulary(vocabulary, encoder)
    assert encoder.asked == ["a cat", "a {x} dog"]
    assert torch.equal(one.embeddings_CD, encoder.encode(["a cat", "a {x} dog"]))
    two = embed_vocabulary(vocabulary, encoder, ["{}", "photo of {}!"])
    mean = encoder.encode(["cat", "{x} dog"]) + encoder.encode(
        ["photo of cat!", "photo of {x} dog!"]
    )
    assert torch.allclose(two.embeddings_CD, mean / 2)
    assert (two.names, two.encoder_id) == (vocabulary.names, encoder.encoder_id)


def test_prompts_replace_templates():
    encoder = CountingEncoder()
    vocabulary = Vocabulary.from_names(["crane (bird)", "b"], ["a crane", "some {} b"])
    embedded = embed_vocabulary(vocabulary, encoder, ["a photo of a {}"])
    assert encoder.asked == ["a crane", "some {} b"]
    assert embedded.prompts == vocabulary.prompts


@pytest.mark.parametrize("templates", [["a cat"], ["{} and {}"], []])
def test_bad_templates(templates):
    with pytest.raises(VocabularyError, match=r"TEXT_ENCODER\.TEMPLATES"):
        embed_vocabulary(Vocabulary.from_names(["a"]), HashTextEncoder(4), templates)


def test_second_start_does_not_call_the_encoder(tmp_path):
    names = Vocabulary.from_names([f"thing {i}" for i in range(1000)])
    first = embed_vocabulary(names, CountingEncoder(), ["a {}"], tmp_path / "new" / "cache")
    again = CountingEncoder()
    assert embed_vocabulary(names, again, ["a {}"], tmp_path / "new" / "cache") == first
    assert again.asked == []
    assert [p.suffix for p in (tmp_path / "new" / "cache").iterdir()] == [".npz"]


def test_cache_key_covers_everything(tmp_path):
    names = ["cat", "dog"]
    base = Vocabulary.from_names(names)
    cases = [
        (base, 16, ["a {}"]),
        (base, 16, ["the {}"]),
        (base, 16, ["a {}", "the {}"]),
        (base, 8, ["a {}"]),
        (Vocabulary.from_names(["dog", "cat"]), 16, ["a {}"]),
        (Vocabulary.from_names(names, ["x", "y"]), 16, ["a {}"]),
    ]
    for vocabulary, dim, templates in cases:
        encoder = CountingEncoder(dim)
        cached = embed_vocabulary(vocabulary, encoder, templates, tmp_path)
        assert encoder.asked  # no other case's file was taken
        assert cached == embed_vocabulary(vocabulary, CountingEncoder(dim), templates)
    assert len(list(tmp_path.iterdir())) == len(cases)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "shape", "nan", "no array"])
def test_damaged_cache_is_computed_again(tmp_path, caplog, damage):
    vocabulary = Vocabulary.from_names(["cat", "dog"])
    first = embed_vocabulary(vocabulary, CountingEncoder(), cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(whole[:100])
    elif damage == "flipped":
        whole[bytes(whole).index(first.embeddings_CD.numpy().tobytes()) + 3] ^= 1
        file.write_bytes(whole)
    elif damage == "text":
        file.write_text("hello")
    elif damage == "no array":
        np.savez(file, other=np.zeros(1))
    else:
        emb = np.zeros((3, 16), np.float32) if damage == "shape" else np.full((2, 16), np.nan, "f")
        np.savez(file, embeddings=emb)
    encoder = CountingEncoder()
    assert embed_vocabulary(vocabulary, encoder, cache_dir=tmp_path) == first
    assert encoder.asked
    assert file.name in caplog.text
    again = CountingEncoder()
    assert embed_vocabulary(vocabulary, again, cache_dir=tmp_path) == first  # repaired
    assert not again.asked


def test_cache_that_cannot_be_written_only_warns(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    vocabulary = Vocabulary.from_names(["cat"])
    embedded = embed_vocabulary(vocabulary, HashTextEncoder(8), cache_dir=tmp_path / "file" / "x")
    assert embedded.embeddings_CD.shape == (1, 8)
    assert "not cached" in caplog.text


def test_useless_features_are_errors():
    class Broken(HashTextEncoder):
        def encode(self, texts):
            return super().encode(texts) * float("nan")

    with pytest.raises(VocabularyError, match="not finite"):
        embed_vocabulary(Vocabulary.from_names(["cat"]), Broken(8))


def config(**text_encoder):
    cfg = get_config()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in {"NAME": "hash", "DIM": 32, **text_encoder}.items():
        setattr(cfg.MODEL.TEXT_ENCODER, key, value)
    return cfg


def test_load_vocabulary(tmp_path):
    cfg = config(TEMPLATES=("a {}", "{}"), CACHE_DIR=str(tmp_path / "cache"))
    assert load_vocabulary(cfg) is None
    cfg.MODEL.VOCABULARY = 'cat, "lamp, floor"'
    vocabulary = load_vocabulary(cfg)
    expected = embed_vocabulary(
        Vocabulary.from_names(["cat", "lamp, floor"]), HashTextEncoder(32), ["a {}", "{}"]
    )
    assert vocabulary == expected
    assert len(list((tmp_path / "cache").iterdir())) == 1
    vocabulary.save(tmp_path / "v.npz")
    # a file with embeddings needs no encoder, so none that could be missing is built
    other = config(NAME="ViT-B-32-quickgelu", WEIGHTS=str(tmp_path / "missing.pt"))
    other.MODEL.VOCABULARY = str(tmp_path / "v.npz")
    assert load_vocabulary(other) == expected
    other.MODEL.VOCABULARY = "cat"
    with pytest.raises(WeightsError, match=r"missing\.pt"):
        load_vocabulary(other)
