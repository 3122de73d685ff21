"""Dataset dicts that are parsed from the annotation file when they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from ext_common.data.annotation_index import AnnotationIndex
from ext_common.data.image_paths import check_links, image_name, links_out
from ext_common.data.lvis_json import LoadOptions, Record, make_record

logger = logging.getLogger(__name__)


class IndexedRecords(Sequence[Record]):
    """What ``lvis_json.load_lvis_json`` returns, record for record, without holding it.

    Can be pickled in a few bytes per image at most, and forked processes share its pages.

    Args:
        index: of the annotation file.
        image_root: folder that image names are relative to.
        options: with which the index was made.
        extra: more fields of every record.

    Raises:
        DatasetError: links that lead out of the image root, unless the options allow them.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        image_root: str,
        options: LoadOptions,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.annotations = index
        self._image_root = image_root
        self._options = options
        self._extra = dict(extra or {})
        if not options.allow_links and any(links_out(image_root, index.header["folders"]).values()):
            check_links(image_root, self._names(), where=index.source)
        logger.info("%s: %d images, %d classes", index.source, len(index), len(index.classes))

    def __len__(self) -> int:
        return len(self.annotations)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        """A new dict each time.

        Raises:
            DatasetError: the annotation file was changed meanwhile.
        """
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        image, objects = self.annotations.entries(range(len(self))[place])
        record = make_record(
            image, objects, self.annotations.classes, self._image_root, self._options
        )
        return {**record, **self._extra}

    def _names(self) -> Iterator[str]:
        for place in range(len(self)):
            image = self.annotations.image(place)
            name = image_name(image, short_coco_names=self._options.short_coco_names)
            if isinstance(name, str):
                yield name
