"""The text encoder of captions: numbers of the authors' code, parameter names, tokens, weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from detic_ext.modeling.caption_encoder import (
    ClipCaptionEncoder,
    HashCaptionEncoder,
    load_text_tower,
    text_tower_shape,
)
from ext_common.clip_weights import model_config
from ext_common.errors import ConfigError, WeightsError
from ext_common.modeling.text_tower import TextTowerShape
from tests.golden_cases import golden_arrays, golden_root

SMALL = TextTowerShape(embed_dim=6, width=8, heads=2, layers=2, context=10)


def golden_encoder() -> tuple[ClipCaptionEncoder, dict[str, np.ndarray]]:
    arrays = golden_arrays("detic", "text_encoder.npz")
    sizes = json.loads(str(arrays["cfg"]))
    sizes["vocabulary"] = sizes.pop("vocab")
    encoder = ClipCaptionEncoder(TextTowerShape(**sizes))
    state = {
        key.removeprefix("sd/"): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith("sd/")
    }
    # single precision throughout: at the largest numbers it decides about the third digit
    ids = torch.arange(sizes["vocabulary"], dtype=torch.float32)[:, None]
    channels = torch.arange(sizes["width"], dtype=torch.float32)[None]
    state["token_embedding.weight"] = torch.sin(0.37 * ids + 1.3 * channels) * 0.1
    load_text_tower(encoder, state, "golden")
    assert set(encoder.state_dict()) == set(state)
    return encoder, arrays


@pytest.mark.golden
def test_golden_tokens_and_features() -> None:
    encoder, arrays = golden_encoder()
    texts = arrays["texts"].tolist()
    np.testing.assert_array_equal(encoder.tokenize(texts), arrays["tokens"])
    np.testing.assert_allclose(encoder.encode(texts), arrays["features"], rtol=0, atol=1e-4)
    with torch.no_grad():
        whole = encoder(torch.from_numpy(arrays["tokens"]))
    np.testing.assert_allclose(whole, arrays["features"], rtol=0, atol=1e-4)


@pytest.mark.golden
def test_golden_names_of_the_full_size_tower() -> None:
    path = golden_root() / "detic" / "state_dict_extra_caption_text_encoder.json"
    wanted = {
        key: tuple(shape)
        for key, shape in json.loads(path.read_text()).items()
        if key.startswith("text_encoder.")
    }
    name = "ViT-B-32-quickgelu"
    with torch.device("meta"):
        tower = ClipCaptionEncoder(text_tower_shape(model_config(name), name))
    own = {f"text_encoder.{key}": tuple(v.shape) for key, v in tower.state_dict().items()}
    assert own == wanted


class Letters:
    """A tokenizer that a reader can follow: one token per letter."""

    sot_token_id, eot_token_id = 100, 101

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 1 for letter in text]


def small_encoder() -> ClipCaptionEncoder:
    torch.manual_seed(3)
    encoder = ClipCaptionEncoder(SMALL, tokenizer=Letters())
    torch.nn.init.normal_(encoder.text_projection)
    return encoder


def test_texts_that_fit_are_framed_and_padded() -> None:
    tokens = small_encoder().tokenize(["ab", "", "abcdefgh"])
    assert tokens.tolist() == [
        [100, 1, 2, 101, 0, 0, 0, 0, 0, 0],
        [100, 101, 0, 0, 0, 0, 0, 0, 0, 0],
        [100, 1, 2, 3, 4, 5, 6, 7, 8, 101],
    ]


def test_of_a_long_text_every_window_is_read_equally_often() -> None:
    letters = "abcdefghijkl"
    framed = [100, *Letters().encode(letters), 101]
    windows = {tuple(framed[start : start + 10]): 0 for start in range(len(framed) - 9)}
    encoder = small_encoder()
    for row in encoder.tokenize([letters] * 1000).tolist():
        windows[tuple(row)] += 1
    assert len(windows) == 5
    assert min(windows.values()) > 140
    assert sum(windows.values()) == 1000


def test_features_do_not_depend_on_the_other_texts_or_on_autocast() -> None:
    encoder = small_encoder()
    together = encoder.encode(["ab", "hgfedcba"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(encoder.encode(["ab"])[0], together[0])
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_tower_without_weights_is_refused_at_its_first_caption() -> None:
    with pytest.raises(WeightsError, match=r"MODEL\.TEXT_ENCODER\.WEIGHTS"):
        ClipCaptionEncoder(SMALL, tokenizer=Letters()).encode(["a"])


def test_weights_of_another_tower_are_refused() -> None:
    state = small_encoder().state_dict()
    other = ClipCaptionEncoder(TextTowerShape(embed_dim=5, width=8, heads=2, layers=2))
    with pytest.raises(WeightsError, match="positional_embedding"):
        load_text_tower(other, state, "file.pt")
    del state["ln_final.bias"]
    with pytest.raises(WeightsError, match="ln_final.bias"):
        load_text_tower(small_encoder(), state, "file.pt")


def test_text_towers_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="not built like CLIP's"):
        text_tower_shape(model_config("ViT-B-16-SigLIP"), "ViT-B-16-SigLIP")


def test_hash_features_come_back_on_the_models_device() -> None:
    encoder = HashCaptionEncoder(8)
    features = encoder.encode(["red square", "blue disc"])
    assert features.shape == (2, encoder.dim)
    assert features.device == encoder.place.device
    assert not encoder.state_dict()
