import threading

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ext_common.config import get_config
from ext_common.errors import ConfigError, WeightsError
from ext_common.text_encoder import ClipTextEncoder, build_text_encoder, embed_vocabulary
from ext_common.vocabulary import Vocabulary
from tests.ext_common.clip_files import (
    FORMS,
    expected_features,
    model_folder,
    save_like_openai,
    save_weights,
    tiny_clip,
)

TEXTS = ["a cat", "a red square", "a photo of a traffic_light in the scene", "a bow_(weapon)", "猫"]


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_clip_features_equal_open_clip(tmp_path, form, custom):
    model = tiny_clip(custom=custom)
    name = model_folder(tmp_path / "model", custom=custom)
    weights = save_weights(form, model, tmp_path / "weights")
    encoder = ClipTextEncoder(name, str(weights), batch_size=2)
    features = encoder.encode(TEXTS)
    assert (features.dtype, features.shape, encoder.dim) == (torch.float32, (5, 24), 24)
    assert torch.allclose(features, expected_features(model, TEXTS), atol=1e-5)
    assert (features.norm(dim=1) - 1).abs().min() > 1e-2  # un-normalised
    assert not features.requires_grad
    assert encoder.encode([]).shape == (0, 24)


def test_one_encoder_id_for_all_forms_and_another_for_other_weights(tmp_path):
    name = model_folder(tmp_path / "model")
    ids = {
        ClipTextEncoder(name, str(save_weights(form, tiny_clip(), tmp_path / form))).encoder_id
        for form in FORMS
    }
    assert len(ids) == 1
    other = save_weights("plain", tiny_clip(seed=1), tmp_path / "other")
    assert ClipTextEncoder(name, str(other)).encoder_id not in ids


def test_weights_from_the_model_folder(tmp_path):
    name = model_folder(tmp_path)
    with pytest.raises(WeightsError, match=r"open_clip_model\.safetensors"):
        ClipTextEncoder(name)
    save_file(tiny_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    assert torch.allclose(
        ClipTextEncoder(name).encode(TEXTS), expected_features(tiny_clip(), TEXTS), atol=1e-5
    )


def test_encoding_ignores_autocast_and_keeps_rows_independent(tmp_path):
    name = model_folder(tmp_path)
    weights = save_weights("plain", tiny_clip(), tmp_path / "w")
    encoder = ClipTextEncoder(name, str(weights), batch_size=3)
    plain = encoder.encode(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS), plain)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    assert torch.allclose(alone, plain, atol=1e-5)


def test_two_threads_load_once(tmp_path, monkeypatch):
    weights = save_weights("plain", tiny_clip(), tmp_path / "w")
    encoder = ClipTextEncoder(model_folder(tmp_path), str(weights))
    built, original = [], open_clip.CLIP
    monkeypatch.setattr(open_clip, "CLIP", lambda **kw: built.append(1) or original(**kw))
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(encoder.encode(TEXTS))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(torch.equal(result, results[0]) for result in results)


def test_long_texts_are_cut_with_a_warning(tmp_path, caplog):
    weights = save_weights("plain", tiny_clip(), tmp_path / "w")
    encoder = ClipTextEncoder(model_folder(tmp_path), str(weights))
    encoder.encode(TEXTS)
    assert not caplog.records
    assert encoder.encode(["word " * 40]).shape == (1, 24)
    assert "1 of 1 texts" in caplog.text


def test_openai_archive_needs_the_quickgelu_model(tmp_path):
    weights = save_weights("torchscript", tiny_clip(), tmp_path / "w")
    encoder = ClipTextEncoder(model_folder(tmp_path / "m", quick_gelu=False), str(weights))
    with pytest.raises(WeightsError, match=r"tiny\.pt.*QuickGELU.*-quickgelu"):
        encoder.encode(["a"])
    other = save_weights("plain", tiny_clip(quick_gelu=False), tmp_path / "other")
    encoder = ClipTextEncoder(model_folder(tmp_path / "m", quick_gelu=False), str(other))
    expected = expected_features(tiny_clip(quick_gelu=False), TEXTS)
    assert torch.allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_missing_weights_say_what_where_and_how(tmp_path, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(WeightsError) as caught:
        ClipTextEncoder("ViT-B-32-quickgelu", cache_dir=tmp_path)
    message = str(caught.value)
    for part in (
        f"{tmp_path}/ViT-B-32.pt",
        "MODEL.TEXT_ENCODER.WEIGHTS",
        "MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD",
        "downloading is off",
    ):
        assert part in message
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(WeightsError, match=r"home/\.cache/clip/ViT-B-32\.pt"):
        ClipTextEncoder("ViT-B-32-quickgelu")


def test_download_only_when_asked(tmp_path, monkeypatch):
    weights, asked = save_weights("plain", tiny_clip(), tmp_path / "w"), []
    monkeypatch.setattr(
        open_clip, "download_pretrained", lambda cfg, cache_dir: asked.append(cfg) or str(weights)
    )
    encoder = ClipTextEncoder("ViT-B-32-quickgelu", cache_dir=tmp_path / "c", allow_download=True)
    assert encoder.weights_path == weights
    assert asked[0]["url"].endswith("ViT-B-32.pt")

    def offline(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(WeightsError, match=r"ViT-B-32\.pt.*failed: Name or service.*WEIGHTS"):
        ClipTextEncoder("ViT-B-32-quickgelu", cache_dir=tmp_path / "c", allow_download=True)


def test_weights_in_either_cache_are_found(tmp_path):
    (tmp_path / "clip").mkdir()
    save_like_openai(tiny_clip().state_dict(), tmp_path / "clip" / "ViT-B-32.pt")
    encoder = ClipTextEncoder("ViT-B-32-quickgelu", cache_dir=tmp_path / "clip")
    assert encoder.weights_path.name == "ViT-B-32.pt"
    # Hugging Face's layout: refs/main names the snapshot folder
    hub = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    save_file(tiny_clip().state_dict(), hub / "snapshots" / "abc" / "open_clip_model.safetensors")
    hub_encoder = ClipTextEncoder("ViT-B-32-quickgelu", cache_dir=tmp_path / "hub")
    assert hub_encoder.weights_path.name == "open_clip_model.safetensors"
    assert hub_encoder.encoder_id == encoder.encoder_id
    with pytest.raises(
        WeightsError, match=r"149 of 149 .*ViT-B-32-quickgelu.*\[20, 16\] for \[77, 512\]"
    ):
        encoder.encode(["a"])  # the tiny tower is no ViT-B-32


@pytest.mark.parametrize(
    ("name", "weights", "error", "match"),
    [
        ("ViT-B-32-quickglu", "", ConfigError, "did you mean ViT-B-32-quickgelu"),
        ("ViT-B-32", "", WeightsError, "name ViT-B-32-quickgelu"),
        (
            "ViT-B-32-quickgelu",
            "/no/such.pt",
            WeightsError,
            r"/no/such\.pt.*no open_clip tag.*openai",
        ),
        ("ViT-H-14", "", WeightsError, "OpenAI published no weights for ViT-H-14.*laion2b"),
        ("local-dir:/no/such", "", WeightsError, "/no/such"),
    ],
)
def test_wrong_names(tmp_path, name, weights, error, match):
    with pytest.raises(error, match=match):
        ClipTextEncoder(name, weights, cache_dir=tmp_path)


def test_wrong_weight_files(tmp_path):
    name = model_folder(tmp_path / "m")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth.*no CLIP text tower"):
        ClipTextEncoder(name, str(tmp_path / "other.pth"))
    weights = save_weights("torchscript", tiny_clip(), tmp_path / "w")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"tiny\.pt.*truncated"):
        ClipTextEncoder(name, str(weights))
    (tmp_path / "bad").mkdir()
    with pytest.raises(ConfigError, match="no readable open_clip configuration"):
        ClipTextEncoder(
            f"local-dir:{tmp_path / 'bad'}",
            str(save_weights("plain", tiny_clip(), tmp_path / "w")),
        ).encode(["a"])
    with pytest.raises(ConfigError, match="batch size 0"):
        ClipTextEncoder(name, batch_size=0)


def test_cached_clip_features_need_no_model(tmp_path, monkeypatch):
    weights = save_weights("torchscript", tiny_clip(), tmp_path / "w")
    name, vocabulary = model_folder(tmp_path / "m"), Vocabulary.from_names(["cat", "dog"])
    first = embed_vocabulary(vocabulary, ClipTextEncoder(name, str(weights)), cache_dir=tmp_path)

    def no_model(**_):
        raise AssertionError("a model was built")

    monkeypatch.setattr(open_clip, "CLIP", no_model)
    encoder = ClipTextEncoder(name, str(weights))
    assert embed_vocabulary(vocabulary, encoder, cache_dir=tmp_path) == first


def test_build_text_encoder_from_config(tmp_path):
    weights = save_weights("torchscript", tiny_clip(), tmp_path / "w")
    node = get_config().MODEL.TEXT_ENCODER
    node.NAME, node.WEIGHTS = model_folder(tmp_path / "m"), str(weights)
    features = build_text_encoder(node).encode(TEXTS)
    assert torch.allclose(features, expected_features(tiny_clip(), TEXTS), atol=1e-5)
