"""A tiny open_clip model on disk, in the forms in which CLIP weights are published."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

FORMS = ["torchscript", "safetensors", "plain", "wrapped", "text only"]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tiny_config(quick_gelu: bool = True, custom: bool = False) -> dict:
    config = json.loads(json.dumps(TINY)) | {"quick_gelu": quick_gelu}
    return config | {"custom_text": True} if custom else config


def tiny_clip(quick_gelu: bool = True, custom: bool = False, seed: int = 0) -> nn.Module:
    """Whole model with random weights that make texts differ clearly."""
    torch.manual_seed(seed)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**tiny_config(quick_gelu)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.half().float())  # so that half-precision files lose nothing
    return model


def model_folder(folder: Path, quick_gelu: bool = True, custom: bool = False) -> str:
    """A folder with the configuration only; returns the model name that means it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": tiny_config(quick_gelu, custom)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


class _Holder(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_like_openai(state: dict[str, torch.Tensor], path: Path) -> None:
    """A TorchScript archive in half precision with OpenAI's names and its three extra values."""
    root = _Holder()
    extra = {"input_resolution": 16, "context_length": 20, "vocab_size": 49408}
    for name, value in {**state, **{k: torch.tensor(v) for k, v in extra.items()}}.items():
        *parents, leaf = name.split(".")
        module: nn.Module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, _Holder())
            module = getattr(module, parent)
        if value.is_floating_point():
            setattr(module, leaf, nn.Parameter(value.half()))
        else:
            module.register_buffer(leaf, value)
    torch.jit.save(torch.jit.script(root), path)


def expected_features(model: nn.Module, texts: list[str]) -> torch.Tensor:
    """What open_clip itself makes of the texts."""
    tokens = open_clip.SimpleTokenizer(context_length=20)(texts)
    with torch.no_grad():
        return model.encode_text(tokens)


def save_weights(form: str, model: nn.Module, folder: Path) -> Path:
    """The model's weights as a file of one of ``FORMS``."""
    folder.mkdir(exist_ok=True)
    state = model.state_dict()
    if form == "torchscript":
        save_like_openai(state, folder / "tiny.pt")
        return folder / "tiny.pt"
    if form == "safetensors":
        save_file(state, folder / "tiny.safetensors")
        return folder / "tiny.safetensors"
    content = {
        "plain": state,
        "wrapped": {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        "text only": {k: v for k, v in state.items() if not k.startswith("visual.")},
    }[form]
    torch.save(content, folder / "tiny.pth")
    return folder / "tiny.pth"
