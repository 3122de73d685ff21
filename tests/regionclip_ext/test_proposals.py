"""Precomputed regions: stored and found again, made in parts, moved with the image.

Which images they belong to is in ``test_proposal_keys.py``, what the command refuses in
``test_proposals_command.py``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from ext_common.data.box_file import ImageBoxes, write_boxes
from ext_common.errors import DatasetError, ImageError
from regionclip_ext.data.pair_mapper import moved_regions
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.data.tsv_pairs import TsvPairs
from regionclip_ext.modeling.regions.source import as_regions
from regionclip_ext.proposals.compute import ProposalRun
from regionclip_ext.proposals.store import MADE_BY, ProposalStore, part_path, write_part
from tests.regionclip_ext.pair_files import write_tsv


class _Corners:
    """Proposes as many boxes as it has seen images, in the lower right half of each."""

    def __init__(self) -> None:
        self.images = 0

    def propose(self, images: Any, image_sizes: Any) -> list[Instances]:
        found = []
        for height, width in image_sizes:
            self.images += 1
            box = torch.tensor([[width / 2, height / 2, width, height]])
            logits = torch.arange(self.images, 0, -1).float()
            found.append(as_regions(box.repeat(self.images, 1), (height, width), logits))
        return found


def _regions(key: str, count: int, size: tuple[int, int] = (20, 30)) -> ImageBoxes:
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4) / 4
    return ImageBoxes(key, size, boxes, np.arange(count, dtype=np.float32))


def _run(records: PairRecords, folder: Path, source: Any = None, **options: Any) -> ProposalRun:
    return ProposalRun(
        records,
        source or _Corners(),
        ShortSideResize(24, 60),
        folder,
        options.pop("header", {"nms": 0.5}),
        torch.device("cpu"),
        batch_size=2,
        part_size=3,
        **options,
    )


def test_store_finds_every_image_again(tmp_path: Path) -> None:
    write_part(tmp_path, 0, {"nms": 0.5}, [_regions("a", 2), _regions("b", 0, (5, 6))])
    write_part(tmp_path, 1, {"nms": 0.5}, [_regions("c", 3)])
    store = pickle.loads(pickle.dumps(ProposalStore(tmp_path)))
    assert len(store) == 3
    for key, count in (("a", 2), ("b", 0), ("c", 3)):
        found = store.find(key)
        np.testing.assert_array_equal(found.boxes_K4, _regions(key, count).boxes_K4)
        np.testing.assert_array_equal(found.scores_K, np.arange(count))
    assert store.find("b", (5, 6)).size_hw == (5, 6)
    assert "d" not in store
    with pytest.raises(DatasetError, match="no proposals for image 'd'"):
        store.find("d")
    with pytest.raises(DatasetError, match=r"the image is 9 x 8 pixels, .* for 6 x 5"):
        store.find("b", (8, 9))


def test_store_refuses_nothing_mixed_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no precomputed proposals"):
        ProposalStore(tmp_path)
    write_part(tmp_path, 0, {"nms": 0.5}, [_regions("a", 1)])
    write_part(tmp_path, 1, {"nms": 0.7}, [_regions("b", 1)])
    with pytest.raises(DatasetError, match="other settings than the first"):
        ProposalStore(tmp_path)
    write_boxes(part_path(tmp_path, 0), [_regions("a", 1)], MADE_BY, {"nms": 0.5})
    with pytest.raises(DatasetError, match=r"older version.*make the proposals again"):
        ProposalStore(tmp_path)
    part_path(tmp_path, 1).write_bytes(b"short")
    with pytest.raises(DatasetError, match=r"part-00001\.regions: cannot be read"):
        ProposalStore(tmp_path)


def test_a_key_of_two_parts_is_found_in_the_first_and_empty_parts_do_no_harm(
    tmp_path: Path,
) -> None:
    write_part(tmp_path, 0, {}, [])
    write_part(tmp_path, 1, {}, [_regions("a", 2), _regions("b", 1)])
    write_part(tmp_path, 2, {}, [_regions("a", 5)])
    store = ProposalStore(tmp_path)
    assert len(store) == 3
    assert len(store.find("a").boxes_K4) == 2
    assert "c" not in store


def test_run_makes_missing_parts_only_in_pixels_of_the_original(tmp_path: Path) -> None:
    records = PairRecords([TsvPairs(write_tsv(tmp_path / "tsv", 7))])
    source = _Corners()
    folder = tmp_path / "regions"
    done: list[int] = []
    assert _run(records, folder, source).run(done.append) == 7
    assert source.images == 7
    assert done[-1] == 7
    store = ProposalStore(folder)
    keys = [f"train.images.tsv:key{n}" for n in range(7)]
    assert [len(store.find(key).boxes_K4) for key in keys] == [1, 2, 3, 4, 5, 6, 7]
    # pictures are 64 x 48 and were halved for the detector
    np.testing.assert_allclose(store.find(keys[0], (48, 64)).boxes_K4, [[32, 24, 64, 48]])
    part_path(folder, 1).unlink()
    again = _Corners()
    assert _run(records, folder, again).run() == 3
    assert again.images == 3
    with pytest.raises(DatasetError, match=r"another detector or setting: nms was 0.5, is 0.7"):
        _run(records, folder, header={"nms": 0.7}).run()


def test_unreadable_images_end_the_run_or_are_left_out(tmp_path: Path) -> None:
    images = write_tsv(tmp_path / "tsv", 4)
    rows = images.read_text().splitlines(keepends=True)
    rows[1] = "key1\tbm90IGFuIGltYWdl\n"
    images.write_text("".join(rows))
    records = PairRecords([TsvPairs(images)])
    with pytest.raises(ImageError, match="key1"):
        _run(records, tmp_path / "a").run()
    _run(records, tmp_path / "b", skip_bad=True).run()
    store = ProposalStore(tmp_path / "b")
    found = [n for n in range(4) if f"train.images.tsv:key{n}" in store]
    assert found == [0, 2, 3]


def test_boxes_move_with_the_resized_and_flipped_image() -> None:
    stored = ImageBoxes("a", (20, 40), np.array([[2, 4, 10, 8]], np.uint16), np.zeros(1))
    moved = moved_regions(stored, (10, 80), flipped=False).proposal_boxes.tensor
    assert moved.tolist() == [[4, 2, 20, 4]]
    flipped = moved_regions(stored, (10, 80), flipped=True).proposal_boxes.tensor
    assert flipped.tolist() == [[60, 2, 76, 4]]
