"""What started processes run in the launch tests; importable, as a new process needs it."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import torch
from detectron2.utils import comm

from ext_common.errors import DatasetError, ExtError
from ext_common.launch import launch, run_on_main


def arguments(processes: int, **more: object) -> argparse.Namespace:
    """detectron2's launch arguments for one machine."""
    return argparse.Namespace(
        num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto", **more
    )


def report(args: argparse.Namespace) -> None:
    """Write what each process sees, after showing that they can talk."""
    ranks = comm.all_gather(comm.get_rank())
    seen = {
        "ranks": ranks,
        "local_rank": comm.get_local_rank(),
        "local_size": comm.get_local_size(),
        "threads": torch.get_num_threads(),
        "shared_error": _shared_error(),
    }
    Path(args.folder, f"{comm.get_rank()}.json").write_text(json.dumps(seen))


def _shared_error() -> str:
    def refuse() -> None:
        assert comm.is_main_process()
        raise DatasetError("no images", where="dataset 'x'")

    try:
        run_on_main(refuse)
    except ExtError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail_in_process_one(args: argparse.Namespace) -> None:
    """Process 1 fails as ``args.how`` says; process 0 waits for it for ever."""
    if comm.get_rank() == 1:
        if args.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DatasetError("image is corrupt", where="a.jpg", fix="remove it")
    comm.synchronize()


if __name__ == "__main__":
    import sys

    launch(report, arguments(1, folder=sys.argv[1]), device="cpu")
