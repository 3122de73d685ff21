"""The concept embeddings of student and teacher, checked against the encoders.

Legend: C concepts, D joint embedding of the student, T of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from ext_common.errors import ConfigError
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_order import known_names, spelling_key
from regionclip_ext.modeling.encoder_shapes import encoder_shape

_STUDENT = "MODEL.CLIP.CONCEPT_POOL_EMB"
_TEACHER = "MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB"
_SAME_LIST = "make both from the same list of concepts, in the same order"


@dataclass(frozen=True)
class ConceptPools:
    """Two matrices with the same concepts in the same order, un-normalised.

    Args:
        student_CD: for the student's logits.
        teacher_CT: for the pseudo labels; the same tensor where one pool serves both.
    """

    student_CD: Tensor
    teacher_CT: Tensor

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ConceptPools | None:
        """The pools of ``CONCEPT_POOL_EMB`` and ``TEACHER_CONCEPT_POOL_EMB``.

        Returns:
            None where no pool is named: there are no region losses then.

        Raises:
            ConfigError: embeddings of another width than the encoder's, a teacher of another width
                without its own pool, or pools with different numbers of concepts or another order.
            VocabularyError, WeightsError: a file that cannot be read.
        """
        clip = cfg.MODEL.CLIP
        if not clip.CONCEPT_POOL_EMB:
            if clip.TEACHER_CONCEPT_POOL_EMB:
                raise ConfigError(
                    "the teacher has concepts and the student has none",
                    where=_STUDENT,
                    fix=f"name the student's embeddings, or clear {_TEACHER}",
                )
            return None
        width, teacher_width = (
            encoder_shape(cfg).embed_dim,
            encoder_shape(cfg, teacher=True).embed_dim,
        )
        student = _pool(clip.CONCEPT_POOL_EMB, width, _STUDENT, "image encoder")
        if clip.TEACHER_CONCEPT_POOL_EMB:
            teacher = _pool(clip.TEACHER_CONCEPT_POOL_EMB, teacher_width, _TEACHER, "teacher")
        elif teacher_width == width:
            teacher = student
        else:
            raise ConfigError(
                f"the teacher's embeddings are {teacher_width} wide, the student's pool is {width}",
                where=_TEACHER,
                fix="name the pool that the teacher's own text encoder made "
                "(tools/prepare_data.py concept-features)",
            )
        if len(student.emb_CD) != len(teacher.emb_CD):
            raise ConfigError(
                f"{len(teacher.emb_CD)} concepts, the student's pool has {len(student.emb_CD)}",
                where=_TEACHER,
                fix=_SAME_LIST,
            )
        _check_order(student, teacher)
        return cls(student.emb_CD, teacher.emb_CD)


@dataclass(frozen=True)
class _Pool:
    """One file: embeddings [C, D], and what its rows stand for; None = it does not say."""

    path: str
    emb_CD: Tensor
    names: tuple[str, ...] | None


def _check_order(student: _Pool, teacher: _Pool) -> None:
    """Pseudo labels are row numbers: row i is one concept in both files.

    Raises:
        ConfigError: names the first row that is not.
    """
    if student.names is None or teacher.names is None:
        return
    for row, (ours, theirs) in enumerate(zip(student.names, teacher.names, strict=True)):
        if _concept(ours) != _concept(theirs):
            raise ConfigError(
                f"row {row} is {theirs!r} in {teacher.path} and {ours!r} in the student's "
                f"{student.path}",
                where=_TEACHER,
                fix=_SAME_LIST,
            )


def _concept(line: str) -> str:
    """A name that can be compared; the file beside a pool may be a list of ``name,count``."""
    return spelling_key(line.partition(",")[0])


def _pool(path: str, width: int, where: str, encoder: str) -> _Pool:
    vocabulary = Vocabulary.from_file(path, generate_names=True)
    emb_CD = vocabulary.embeddings_CD
    if emb_CD is None:
        raise ConfigError(
            f"{path} has names and no embeddings",
            where=where,
            fix="make them: tools/prepare_data.py concept-features",
        )
    if emb_CD.shape[1] != width:
        raise ConfigError(
            f"the embeddings of {path} are {emb_CD.shape[1]} wide, the {encoder}'s are {width}",
            where=where,
            fix="use the text encoder that belongs to the image encoder "
            "(1024 for RN50, 512 for RN101, 640 for RN50x4, 768 for RN50x16)",
        )
    return _Pool(path, emb_CD.float(), known_names(vocabulary.names))
