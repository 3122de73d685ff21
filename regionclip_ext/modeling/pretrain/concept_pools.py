"""The concept embeddings of student and teacher, checked against the encoders.

Legend: C concepts, D joint embedding of the student, T of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import Tensor

from ext_common.errors import ConfigError
from ext_common.vocabulary import Vocabulary
from regionclip_ext.modeling.encoder_shapes import encoder_shape

_STUDENT = "MODEL.CLIP.CONCEPT_POOL_EMB"
_TEACHER = "MODEL.CLIP.TEACHER_CONCEPT_POOL_EMB"


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
                without its own pool, or pools with different numbers of concepts.
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
        student_CD = _pool(clip.CONCEPT_POOL_EMB, width, _STUDENT, "image encoder")
        if clip.TEACHER_CONCEPT_POOL_EMB:
            teacher_CT = _pool(clip.TEACHER_CONCEPT_POOL_EMB, teacher_width, _TEACHER, "teacher")
        elif teacher_width == width:
            teacher_CT = student_CD
        else:
            raise ConfigError(
                f"the teacher's embeddings are {teacher_width} wide, the student's pool is {width}",
                where=_TEACHER,
                fix="name the pool that the teacher's own text encoder made "
                "(tools/prepare_data.py concept-features)",
            )
        if len(student_CD) != len(teacher_CT):
            raise ConfigError(
                f"{len(teacher_CT)} concepts, the student's pool has {len(student_CD)}",
                where=_TEACHER,
                fix="make both from the same list of concepts, in the same order",
            )
        return cls(student_CD, teacher_CT)


def _pool(path: str, width: int, where: str, encoder: str) -> Tensor:
    emb_CD = Vocabulary.from_file(path, generate_names=True).embeddings_CD
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
    return emb_CD.float()
