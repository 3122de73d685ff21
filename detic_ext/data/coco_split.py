"""The open-vocabulary split of COCO (specification 6.7), as COCO category ids."""

BASE_IDS = (
    *(1, 2, 3, 4, 7, 8, 9, 15, 16, 19, 20, 23, 24, 25, 27, 31, 33, 34, 35, 38, 42, 44, 48, 50),
    *(51, 52, 53, 54, 55, 56, 57, 59, 60, 62, 65, 70, 72, 73, 74, 75, 78, 79, 80, 82, 84, 85, 86),
    90,
)
"""The 48 classes that are trained with boxes."""

NOVEL_IDS = (5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87)
"""The 17 classes that have no training boxes; 15 more classes are neither trained nor scored."""
