"""SoCo's keys: one per option, with the released defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ext_common.config import get_config
from ext_common.errors import ConfigError
from ext_common.packages import register_all
from soco_ext.data.view_options import ProposalOptions, ViewOptions


@pytest.mark.parametrize(
    ("block", "options"),
    [("VIEWS", ViewOptions), ("PROPOSALS", ProposalOptions)],
    ids=["views", "proposals"],
)
def test_every_option_has_a_key_with_its_default(block: str, options: type) -> None:
    register_all()
    node = get_config().SOCO[block]
    defaults = {field.name.upper(): field.default for field in fields(options)}
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()}
    assert found == defaults


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aspect_ratio": 0.5}, "SOCO.PROPOSALS.ASPECT_RATIO: 0.5"),
        ({"aspect_ratio": float("nan")}, "SOCO.PROPOSALS.ASPECT_RATIO: nan"),
        ({"max_props": 0}, "SOCO.PROPOSALS.MAX_PROPS: 0"),
        ({"min_size_ratio": -0.1}, "SOCO.PROPOSALS.MIN_SIZE_RATIO.*-0.1 to 0.8"),
        ({"max_size_ratio": 0.2}, "SOCO.PROPOSALS.MIN_SIZE_RATIO.*0.3 to 0.2"),
    ],
)
def test_random_boxes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProposalOptions(source="random", **changes)
    ProposalOptions(
        source="random", aspect_ratio=1.0, max_props=1, min_size_ratio=0.0, max_size_ratio=0.0
    )


def test_released_defaults_of_the_model() -> None:
    register_all()
    cfg = get_config()
    assert (cfg.SOCO.MOMENTUM, cfg.SOCO.HIDDEN_DIM, cfg.SOCO.EMBEDDING_DIM) == (0.99, 4096, 256)
    assert (cfg.SOCO.LEVEL_USE, cfg.SOCO.POOLER_ALIGNED, cfg.SOCO.NORM) == ("dense", True, "SyncBN")
    assert (cfg.SOLVER.LARS.TRUST, cfg.SOLVER.LARS.EPS) == (0.001, 1e-8)
    assert (cfg.SOLVER.ACCUMULATE, cfg.SOLVER.LR_REFERENCE_BATCH) == (1, 0)
