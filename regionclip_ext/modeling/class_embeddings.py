"""Which text embeddings a detector classifies with.

Legend: C classes, D width of the joint embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from ext_common.errors import ConfigError, DatasetError, VocabularyError
from ext_common.recorded_vocabulary import recorded_vocabulary
from ext_common.text_encoder import load_vocabulary
from ext_common.vocabulary import Vocabulary


class ClassEmbeddings(nn.Module):
    """A frozen matrix of class embeddings, ``weight`` [C, D], un-normalised.

    Args:
        emb_CD: configured embeddings; what a checkpoint holds under the same name is ignored then
            (specification 10: the configured file wins).
        num_classes: C where none are configured: zeros, until a checkpoint fills them.
        dim: D.
    """

    def __init__(self, emb_CD: Tensor | None, *, num_classes: int, dim: int) -> None:
        super().__init__()
        self.configured = emb_CD is not None
        self._seen = False  # that the rows are not zeros: looked at once after each loading
        if emb_CD is None:
            emb_CD = torch.zeros(num_classes, dim)
        self.weight = nn.Parameter(emb_CD.detach().clone().float(), requires_grad=False)

    def forward(self) -> Tensor:
        """The matrix.

        Raises:
            VocabularyError: neither configuration nor checkpoint gave it.
        """
        if not self.configured and not self._seen and not bool(self.weight.any()):
            raise VocabularyError(
                "the detector has no classes",
                where="MODEL.CLIP.TEXT_EMB_PATH",
                fix="give --vocabulary, MODEL.VOCABULARY or an embedding file, or a checkpoint of a "
                "detector that has them",
            )
        self._seen = True
        return self.weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        name = f"{prefix}weight"
        self._seen = False
        if self.configured and name in state_dict:
            state_dict = {**state_dict, name: self.weight}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@dataclass(frozen=True)
class ConfiguredClasses:
    """Vocabularies of a detector.

    Attributes:
        trained: the classes of training; None = not configured.
        tested: other classes at test; None = the same.
    """

    trained: Vocabulary | None
    tested: Vocabulary | None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ConfiguredClasses:
        """``MODEL.VOCABULARY``, else ``TEXT_EMB_PATH``; and ``OPENSET_TEST_TEXT_EMB_PATH``.

        Raises:
            ConfigError: embeddings of another width than the model's, a file without embeddings,
                or another number of training classes than ``ROI_HEADS.NUM_CLASSES``.
            VocabularyError: a file that cannot be read.
        """
        clip = cfg.MODEL.CLIP
        trained = _chosen(cfg)
        if trained is None and clip.TEXT_EMB_PATH:
            trained = _from_file(cfg, "TEXT_EMB_PATH", cfg.DATASETS.TRAIN)
            count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
            if len(trained) != count:
                raise ConfigError(
                    f"{clip.TEXT_EMB_PATH} has {len(trained)} classes, "
                    f"MODEL.ROI_HEADS.NUM_CLASSES is {count}",
                    where="MODEL.CLIP.TEXT_EMB_PATH",
                    fix="set NUM_CLASSES to the number of training classes, or name their file; "
                    "other classes at test belong in OPENSET_TEST_TEXT_EMB_PATH",
                )
        tested = None
        if clip.OPENSET_TEST_TEXT_EMB_PATH:
            tested = _from_file(cfg, "OPENSET_TEST_TEXT_EMB_PATH", cfg.DATASETS.TEST)
        for vocabulary in (trained, tested):
            _check_width(vocabulary, clip.TEXT_EMB_DIM)
        return cls(trained, tested)


def embeddings_of(vocabulary: Vocabulary | None) -> Tensor | None:
    """Its matrix, if there is one."""
    return None if vocabulary is None else vocabulary.embeddings_CD


def _chosen(cfg: CfgNode) -> Vocabulary | None:
    try:
        return load_vocabulary(cfg)
    except (VocabularyError, DatasetError) as error:
        return recorded_vocabulary(cfg, error)


def _from_file(cfg: CfgNode, key: str, datasets: Sequence[str]) -> Vocabulary:
    """The embeddings of ``MODEL.CLIP.<key>`` with the names that belong to the rows.

    Those of the file, where it has some: a dataset with another order must not rename its rows
    (``ext_common.data.dataset_checks`` compares the two before a training or a test). Rows without
    names have those of the first dataset with as many classes.

    Raises:
        ConfigError: the file has names and no embeddings.
        VocabularyError: it cannot be read.
    """
    path = cfg.MODEL.CLIP[key]

    def names_of(rows: int) -> Sequence[str] | None:
        for dataset in (*datasets, *cfg.DATASETS.TEST):
            try:
                names = MetadataCatalog.get(dataset).get("thing_classes")
            except DatasetError:  # not on this machine
                continue
            if names is not None and len(names) == rows:
                return tuple(names)
        return None

    vocabulary = Vocabulary.from_file(path, generate_names=True, fallback_names=names_of)
    if vocabulary.embeddings_CD is None:
        raise ConfigError(
            f"{path} has names and no embeddings",
            where=f"MODEL.CLIP.{key}",
            fix="make them (tools/prepare_data.py concept-features), or name the classes in "
            "MODEL.VOCABULARY: they are embedded then",
        )
    return vocabulary


def _check_width(vocabulary: Vocabulary | None, width: int) -> None:
    emb_CD = embeddings_of(vocabulary)
    if emb_CD is not None and emb_CD.shape[1] != width:
        raise ConfigError(
            f"the class embeddings are {emb_CD.shape[1]} wide, MODEL.CLIP.TEXT_EMB_DIM is {width}",
            where="MODEL.CLIP.TEXT_EMB_PATH",
            fix="use embeddings of the text encoder that belongs to the image encoder "
            "(1024 for RN50, 512 for RN101, 640 for RN50x4, 768 for RN50x16)",
        )
