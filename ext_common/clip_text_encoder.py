"""CLIP's text tower through open_clip, as a text encoder.

Legend: N texts, L tokens (77 for CLIP), D embedding width.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ext_common.clip_weights import find_clip_weights, model_config, quick_gelu_error
from ext_common.errors import ConfigError, WeightsError
from ext_common.torchscript_archive import is_torchscript
from ext_common.weights_io import load_tensors

logger = logging.getLogger(__name__)

PROGRESS_BATCHES = 8
"""A progress bar appears from this many batches on."""
REGIONCLIP_TEXT = "lang_encoder."
"""Prefix of the text tower in RegionCLIP's checkpoints (specification 10)."""

# the image tower is not needed: the smallest one that open_clip builds takes its place
_NO_VISION = {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64}
_FINGERPRINT = ("ln_final", "positional_embedding", "text_projection")
_NOT_TEXT = ("visual", "logit_scale", "logit_bias")
_WRAPPERS = ("model", "state_dict")


class ClipTextEncoder:
    """Raw CLIP text features (Radford et al. 2021), as the released classifiers hold them.

    The weights are looked for at once, but read only for the first text: a start that finds all
    features in the cache neither imports open_clip nor builds a model.

    Args:
        model_name: an open_clip model (OpenAI's weights need the ``-quickgelu`` variants), or
            ``local-dir:FOLDER`` for one exported by open_clip.
        weights: OpenAI ``.pt`` or open_clip file, a RegionCLIP checkpoint with ``lang_encoder.*``, or
            an open_clip tag; empty = OpenAI's weights from open_clip's cache. Text weights alone are
            enough.
        allow_download: let open_clip fetch missing weights.
        cache_dir: instead of open_clip's own cache folders.
        batch_size: texts per forward pass.
        device: where the text tower runs; features come back to the CPU.

    Raises:
        WeightsError: missing, damaged or unsafe weights, or a file without a CLIP text tower.
        ConfigError: a model that open_clip does not know.
    """

    def __init__(
        self,
        model_name: str = "ViT-B-32-quickgelu",
        weights: str = "",
        *,
        allow_download: bool = False,
        cache_dir: str | Path | None = None,
        batch_size: int = 256,
        device: str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}", where="text encoder", fix="at least 1")
        self.weights_path = find_clip_weights(
            model_name, weights, allow_download=allow_download, cache_dir=cache_dir
        )
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._model_name = model_name
        self._lock = threading.Lock()
        self._loaded: tuple[nn.Module, Callable[[list[str]], Tensor]] | None = None
        self.dim, fingerprint = _identify(self.weights_path)
        # a folder's path says nothing about the model, and differs between machines
        shown = "local-dir" if model_name.startswith("local-dir:") else model_name
        self.encoder_id = f"clip/{shown}/{fingerprint}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Un-normalised features [N, D], float32 on the CPU, whatever autocast is around."""
        if not texts:
            return torch.zeros(0, self.dim)
        _, tokenize = self._ready()
        texts = list(texts)
        starts = range(0, len(texts), self.batch_size)
        quiet = True if len(starts) < PROGRESS_BATCHES else None  # None: only on a terminal
        features: list[Tensor] = []
        full = 0
        for start in tqdm(starts, desc="text features", unit="batch", disable=quiet):
            tokens_NL = tokenize(texts[start : start + self.batch_size])
            full += int((tokens_NL[:, -1] != 0).sum())
            features.append(self.encode_tokens(tokens_NL))
        if full:
            logger.warning(
                "%d of %d texts fill CLIP's token limit: the rest is cut.", full, len(texts)
            )
        return torch.cat(features)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """As :meth:`encode`, for one batch of int64 tokens; the end token has the largest number."""
        model, _ = self._ready()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            encoded_ND: Tensor = model.encode_text(tokens_NL.to(self.device))  # type: ignore[operator]
        return encoded_ND.float().cpu()

    def _ready(self) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
        with self._lock:
            if self._loaded is None:
                config = model_config(self._model_name)
                model = _build_text_model(config, self._model_name, self.weights_path)
                self._loaded = (model.to(self.device), _tokenizer(config, self._model_name))
            return self._loaded


def text_tensors(content: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors outside the image tower, without wrappers and prefixes (``module.``, ``text.``).

    Of a RegionCLIP checkpoint only those below ``lang_encoder.``.
    """
    state = _unwrapped(content)
    prefix = REGIONCLIP_TEXT if _is_regionclip(state) else ""
    for name, value in state.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix).removeprefix("text.")
        if isinstance(value, Tensor) and name.split(".")[0] not in _NOT_TEXT:
            yield name, value


def holds_text_encoder(path: str | Path) -> bool:
    """Whether a file is a RegionCLIP checkpoint with its text encoder (``lang_encoder.*``).

    A glance at the names. A file that is not there or cannot be read holds none: who loads it says
    what is wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file() or path.suffix == ".pkl":  # detectron2's and Detectron's detectors
        return False
    try:
        return _is_regionclip(_unwrapped(load_tensors(path, mapped=True)))
    except WeightsError as error:
        logger.warning("Not searched for a text encoder: %s", error)
        return False


def _unwrapped(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds by name, without wrappers and the prefix of DistributedDataParallel."""
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _is_regionclip(names: Mapping[str, Any]) -> bool:
    return any(name.startswith(REGIONCLIP_TEXT) for name in names)


def _identify(path: Path) -> tuple[int, str]:
    """Width D and a fingerprint of the text tower, from the few small tensors that end it.

    The fingerprint is taken over float32 values: OpenAI's half-precision archive and a converted
    copy of it are the same encoder.
    """
    tensors = {
        name: tensor
        for name, tensor in text_tensors(load_tensors(path, mapped=True))
        if name.split(".")[0] in _FINGERPRINT
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].float().contiguous().numpy().tobytes())
    if (projection := tensors.get("text_projection")) is not None:  # [width, D]
        return int(projection.shape[1]), digest.hexdigest()[:12]
    if (
        projection := tensors.get("text_projection.weight")
    ) is not None:  # a linear layer: [D, width]
        return int(projection.shape[0]), digest.hexdigest()[:12]
    raise WeightsError(
        "holds no CLIP text tower: text_projection is missing",
        where=str(path),
        fix="give OpenAI's .pt, an open_clip checkpoint, or RegionCLIP's with lang_encoder.*",
    )


def _build_text_model(config: dict[str, Any], model_name: str, path: Path) -> nn.Module:
    """An open_clip model whose text tower holds the file's weights and whose image tower is gone."""
    import open_clip

    custom = config.pop("custom_text", False)
    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ConfigError(
            f"the text tower of {model_name} is not one of CLIP's own",
            where="MODEL.TEXT_ENCODER.NAME",
            fix="use a model whose text tower open_clip itself implements",
        )
    content = load_tensors(path)
    if not config.get("quick_gelu") and _is_quick_gelu(path, content):
        raise quick_gelu_error(model_name, str(path))
    config["vision_cfg"] = _NO_VISION
    model: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    prefix = "text." if custom else ""
    expected = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name.split(".")[0] not in _NOT_TEXT
    }
    found = {f"{prefix}{name}": tensor for name, tensor in text_tensors(content)}
    wrong = [
        f"{name} {list(found[name].shape) if name in found else 'missing'} for {list(shape)}"
        for name, shape in expected.items()
        if name not in found or found[name].shape != shape
    ]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of {len(expected)} text weights do not fit {model_name}: "
            + "; ".join(wrong[:3]),
            where=str(path),
            fix="the model name and the file must belong together",
        )
    model.load_state_dict({name: found[name] for name in expected}, strict=False)
    del model.visual
    return model.float().eval().requires_grad_(False)


def _is_quick_gelu(path: Path, content: Mapping[str, Any]) -> bool:
    """OpenAI's models, which alone were published as archives, and RegionCLIP's made from them."""
    if _is_regionclip(_unwrapped(content)):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return is_torchscript(archive.namelist())


def _tokenizer(config: dict[str, Any], model_name: str) -> Callable[[list[str]], Tensor]:
    import open_clip

    text = config["text_cfg"]
    if text.get("hf_tokenizer_name") or "siglip" in model_name.lower():
        return open_clip.get_tokenizer(model_name)
    # get_tokenizer would do, but it configures the root logger on the way
    return open_clip.SimpleTokenizer(
        context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
    )
