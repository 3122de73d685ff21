"""Text encoder and tokens against the authors' code."""

from __future__ import annotations

import pytest
import torch

from ext_common.modeling.text_tower import TextTower, TextTowerShape
from ext_common.vocabulary_prompts import fill
from regionclip_ext.concepts.templates import imagenet_templates
from regionclip_ext.modeling.clip_tokens import tokenize, tokenize_counted
from tests.golden_cases import golden_arrays
from tests.regionclip_ext.golden_models import stored_weights


@pytest.mark.golden
def test_golden_text_encoder() -> None:
    arrays = golden_arrays("regionclip", "lang_encoder.npz")
    weights = stored_weights(arrays)
    context, width = weights["positional_embedding"].shape
    blocks = {n.split(".")[2] for n in weights if n.startswith("transformer.resblocks.")}
    tower = TextTower(
        TextTowerShape(
            embed_dim=weights["text_projection"].shape[1],
            width=width,
            heads=int(arrays["heads"]),
            layers=len(blocks),
            context=context,
            vocabulary=len(weights["token_embedding.weight"]),
        )
    )
    tower.load_state_dict(weights, strict=True)
    tokens = torch.from_numpy(arrays["tokens"]).long()
    for only_eot, name in ((True, "eot_embedding"), (False, "all_token_embedding")):
        golden = torch.from_numpy(arrays[name])
        ours = tower(tokens, only_eot=only_eot)
        torch.testing.assert_close(ours, golden, atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.golden
def test_golden_tokens() -> None:
    arrays = golden_arrays("regionclip", "tokenizer.npz")
    templates = imagenet_templates()
    for name, golden in zip(arrays["concept_names"], arrays["prompt_tokens"], strict=True):
        ours = tokenize([fill(template, str(name)) for template in templates])
        assert ours[0].tolist() == golden[0].tolist()
        assert sorted(ours.tolist()) == sorted(golden.tolist())
    captions = [str(caption) for caption in arrays["captions"]]
    assert tokenize(captions).tolist() == arrays["caption_tokens"].tolist()


def test_long_texts_lose_their_end_or_keep_it() -> None:
    """Pitfall 11.12: both behaviours."""
    text, end = "word " * 200, 49407
    cut, kept = tokenize([text])[0], tokenize([text], keep_end=True)[0]
    assert end not in cut.tolist()
    assert kept[-1] == end
    assert cut[:-1].tolist() == kept[:-1].tolist()
    assert torch.equal(tokenize(["a cat"]), tokenize(["a cat"], keep_end=True))


def test_half_precision_around_does_not_reach_the_text_encoder() -> None:
    shape = TextTowerShape(embed_dim=6, width=16, heads=2, layers=1, context=8, vocabulary=20)
    tower = TextTower(shape)
    tokens = torch.tensor([[1, 5, 19, 0, 0, 0, 0, 0]])
    plain = tower(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tower(tokens), plain)


@pytest.mark.parametrize(
    "text", ["a cat", "word " * 5000, "a \U0001f431 on a r\u00e9sum\u00e9", ""],
    ids=["short", "long", "emoji", "empty"],
)  # fmt: skip
def test_tokens_are_counted_before_they_are_cut(text: str) -> None:
    count = tokenize_counted(text)[1]
    whole = tokenize([text], context=count)[0]
    assert whole[-1] == 49407
    assert (whole != 0).all()
    assert tokenize([text], context=count - 1)[0][-1] != 49407
