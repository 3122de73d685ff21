"""The digest of a configuration: what it sees and what it leaves out."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from ext_common.config import get_config
from ext_common.config_digest import config_digest


def _digest(key: str, value: Any, *leave_out: str) -> str:
    cfg = get_config()
    cfg.merge_from_list([key, value])
    return config_digest(cfg, leave_out)


def test_files_made_before_have_the_same_digest() -> None:
    cfg = get_config()
    found = config_digest(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "", ""
    assert found == hashlib.blake2b(cfg.dump().encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.WEIGHTS", "a.pth"), ("MODEL.DEVICE", "cpu"), ("OUTPUT_DIR", "x")]
)
def test_paths_and_device_do_not_count(key: str, value: str) -> None:
    assert _digest(key, value) == config_digest(get_config())


def test_all_other_keys_count_unless_they_are_left_out() -> None:
    plain = get_config()
    for key, value in (("SEED", 3), ("MODEL.RPN.NMS_THRESH", 0.5), ("SOLVER.BASE_LR", 1.0)):
        assert _digest(key, value) != config_digest(plain)
        assert _digest(key, value, "MODEL.MASK_ON") != config_digest(plain, ("MODEL.MASK_ON",))
        assert _digest(key, value, key) == config_digest(plain, (key,))
    assert _digest("SOLVER.BASE_LR", 1.0, "SOLVER.*") == config_digest(plain, ("SOLVER.*",))
    assert plain.SOLVER.BASE_LR != ""
