"""The classes of the demo: attribute x shape, eight with boxes (base) and four without (novel).

Every word of a novel name also occurs in a base name, so the word vectors of a novel class are
known words in a new combination. Four of the six shapes carry boxes in one attribute only: boxes
alone cannot teach a model to tell these shapes' attributes apart, image labels can.
"""

from __future__ import annotations

from dataclasses import dataclass

# Head of the long tail first; the id of a class is its place in CLASSES, from 1.
_BASE = (
    ("red", "square"),
    ("striped", "disc"),
    ("red", "star"),
    ("striped", "triangle"),
    ("striped", "square"),
    ("red", "ring"),
    ("striped", "cross"),
    ("red", "disc"),
)
_NOVEL = (
    ("striped", "star"),
    ("red", "triangle"),
    ("striped", "ring"),
    ("red", "cross"),
)
TAIL_EXPONENT = 0.8


@dataclass(frozen=True)
class DemoClass:
    """One class.

    Attributes:
        id: category id, 1..C, the same in every file.
        attribute: colour or texture, a key of :data:`fills.FILLS`.
        shape: a key of :data:`shapes.OUTLINES`.
        is_novel: True where the class never has boxes in ``base_train.json``.
        weight: how often it is drawn in training scenes, relative to the other classes.
        frequency: LVIS letter: ``f`` and ``c`` for the head and the tail of the base classes,
            ``r`` for the novel classes (as in open-vocabulary LVIS, where "rare" means novel).
    """

    id: int
    attribute: str
    shape: str
    is_novel: bool
    weight: float
    frequency: str

    @property
    def name(self) -> str:
        """The name in all files, ``attribute shape``."""
        return f"{self.attribute} {self.shape}"


def _make_classes() -> tuple[DemoClass, ...]:
    base_weights = [(rank + 1) ** -TAIL_EXPONENT for rank in range(len(_BASE))]
    novel_weight = sum(base_weights) / len(base_weights)
    classes = [
        DemoClass(
            id=rank + 1,
            attribute=attribute,
            shape=shape,
            is_novel=False,
            weight=base_weights[rank],
            frequency="f" if rank < len(_BASE) // 2 else "c",
        )
        for rank, (attribute, shape) in enumerate(_BASE)
    ]
    classes += [
        DemoClass(len(_BASE) + 1 + place, attribute, shape, True, novel_weight, "r")
        for place, (attribute, shape) in enumerate(_NOVEL)
    ]
    return tuple(classes)


CLASSES: tuple[DemoClass, ...] = _make_classes()
BASE_CLASSES: tuple[DemoClass, ...] = tuple(c for c in CLASSES if not c.is_novel)
NOVEL_CLASSES: tuple[DemoClass, ...] = tuple(c for c in CLASSES if c.is_novel)
