"""Names given at run time meet the prompts of the published embeddings (specification 1.2, 1.3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ext_common import text_encoder
from ext_common.config import get_config, load_config
from ext_common.evaluation.vocabularies import embedded
from ext_common.text_encoder import HashTextEncoder, load_vocabulary, text_encoder_from_config
from ext_common.vocabulary import Vocabulary
from regionclip_ext.concepts.templates import imagenet_templates
from tests.regionclip_ext.golden_models import CONFIGS
from tests.regionclip_ext.tiny_detector import DIM, tiny_config
from tools.prepare_data import main

NAMES = ("cat", "baseball_bat_(sport)", "salt, pepper", "black+white", "a_b_c")
RECIPES = sorted(
    path.name
    for path in CONFIGS.glob("*.yaml")
    if load_config(path).MODEL.META_ARCHITECTURE == "CLIPFastRCNN"
)


class _EverySignCounts(HashTextEncoder):
    """The hash encoder without its blindness for signs."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return super().encode([text.encode().hex() for text in texts])


@pytest.mark.parametrize("name", RECIPES)
def test_all_detectors_have_the_published_prompts(name: str) -> None:
    node = load_config(CONFIGS / name).MODEL.TEXT_ENCODER
    assert len(node.TEMPLATES) == 81
    assert set(node.TEMPLATES) == set(imagenet_templates())
    assert node.CLEAN_NAMES is True


def test_a_vocabulary_of_lvis_names_is_embedded_as_by_concept_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "HashTextEncoder", _EverySignCounts)
    categories = [{"id": 1 + row, "name": name} for row, name in enumerate(NAMES)]
    (tmp_path / "ann.json").write_text(json.dumps({"categories": categories}))
    output = tmp_path / "lvis.pth"
    words = ["concept-features", "--ann", str(tmp_path / "ann.json"), "--output", str(output)]
    words += ["--model", "hash", "--dim", str(DIM), "--cache", str(tmp_path / "cache")]
    assert main(words) == 0
    published = torch.load(output, weights_only=True)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    cfg = tiny_config(tmp_path, MODEL__VOCABULARY=str(tmp_path / "names.txt"))
    vocabulary = load_vocabulary(cfg)
    assert vocabulary is not None
    assert vocabulary.names == NAMES
    torch.testing.assert_close(vocabulary.embeddings_CD, published, atol=1e-6, rtol=0)
    # test sets that bring their own classes, and predictors, go the same way
    (tested,) = embedded(cfg, [Vocabulary.from_names(NAMES)])
    assert tested == vocabulary


def test_names_stay_as_they_are_without_the_key_and_the_cache_keeps_both_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "HashTextEncoder", _EverySignCounts)
    cfg = get_config()
    assert cfg.MODEL.TEXT_ENCODER.CLEAN_NAMES is False
    cfg.MODEL.VOCABULARY = "bat_(sport)"
    cfg.MODEL.TEXT_ENCODER.NAME = "hash"
    cfg.MODEL.TEXT_ENCODER.CACHE_DIR = str(tmp_path)
    found = {}
    for clean in (False, True, False, True):
        cfg.MODEL.TEXT_ENCODER.CLEAN_NAMES = clean
        vocabulary = load_vocabulary(cfg)
        assert vocabulary is not None
        text = "a bat sport" if clean else "a bat_(sport)"
        expected = text_encoder_from_config(cfg).encode([text])
        assert torch.equal(vocabulary.embeddings_CD, expected)
        found[clean] = vocabulary
    assert len(list(tmp_path.iterdir())) == 2
    # the encoder is the same: heads of either take embeddings of the other
    assert found[True].encoder_id == found[False].encoder_id
    # a class's own prompt is nobody's to clean
    cfg.MODEL.TEXT_ENCODER.CLEAN_NAMES = True
    (prompted,) = embedded(cfg, [Vocabulary.from_names(["x"], ["some x_(y), z"])])
    expected = text_encoder_from_config(cfg).encode(["some x_(y), z"])
    assert torch.equal(prompted.embeddings_CD, expected)
