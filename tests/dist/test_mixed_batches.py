from __future__ import annotations

import argparse
import json
from pathlib import Path

from ext_common.launch import launch
from tests.dist.mixed_batches import STEPS, train


def test_boxes_on_one_process_and_image_labels_on_the_other_train_the_same_weights(
    tmp_path: Path,
) -> None:
    args = argparse.Namespace(
        num_gpus=2,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        result=str(tmp_path / "result"),
    )
    launch(train, args, device="cpu")
    first, second = (json.loads(Path(f"{args.result}.{rank}").read_text()) for rank in range(2))
    assert len(first["names"]) == STEPS
    assert first["names"] == second["names"]
    assert first["weights"] == second["weights"]
