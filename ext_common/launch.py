"""Processes of a run: started here (CUDA or CPU), or joined (torchrun, Slurm).

``launch(main, args)`` runs ``main(args)`` once per process with the process group ready, as
detectron2 expects it. A process that fails ends all of them; the error of the first one is raised.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as _detectron2_launch
from detectron2.utils import comm

from ext_common.cluster import JoinedProcess, find_joined_process
from ext_common.errors import ExtError, LaunchError
from ext_common.interruption import handing_on_signals
from ext_common.worker_errors import ErrorBoard, rebuild_error

DEFAULT_TIMEOUT = timedelta(minutes=30)
_LOCALHOST = "127.0.0.1"

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessPlan:
    """What a command line asks for.

    Args:
        device: ``cuda`` or ``cpu``.
        per_machine: processes on this machine, one per GPU on CUDA.
        machines: number of machines.
        machine_rank: number of this machine, from 0.
        dist_url: ``tcp://HOST:PORT`` of machine 0, or ``auto`` on a single machine.
    """

    device: str
    per_machine: int = 1
    machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"

    @property
    def world_size(self) -> int:
        """Processes of all machines together."""
        return self.per_machine * self.machines


def launch(
    main: Callable[[argparse.Namespace], T],
    args: argparse.Namespace,
    *,
    device: str = "cuda",
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> T | None:
    """Run ``main(args)`` in every process of the run.

    Under torchrun or ``srun`` (found in the environment) this process is one of them already and
    joins; otherwise ``args.num_gpus`` processes are started per machine, also on CPU.

    Args:
        main: a module-level function, so that a new process can import it.
        args: detectron2's ``num_gpus, num_machines, machine_rank, dist_url``; others are passed on.
        device: ``cuda`` (one GPU per process, NCCL) or ``cpu`` (gloo, one thread per process where
            there are several). ``cuda`` without a GPU means ``cpu``.
        timeout: how long a collective operation may wait for a process that does not come.

    Returns:
        What ``main`` returned if it ran in this process, None if processes were started.

    Raises:
        LaunchError: the processes cannot be started, or one stopped for no known reason.
        ExtError: the error of the process that failed first.
    """
    device = usable_device(device)
    joined = None if args.num_machines > 1 else find_joined_process(os.environ)
    if joined is not None:
        return _run_joined(main, args, joined, device, timeout)
    plan = plan_processes(args, device)
    if plan.world_size == 1:
        return main(args)
    _start_processes(main, args, plan, timeout)
    return None


def usable_device(device: str) -> str:
    """``cuda`` where it was asked for and exists, otherwise ``cpu``."""
    wants_cuda = device.startswith("cuda")
    return "cuda" if wants_cuda and torch.cuda.is_available() else "cpu"


def plan_processes(args: argparse.Namespace, device: str) -> ProcessPlan:
    """Check what the command line asks for.

    Raises:
        LaunchError: numbers that do not fit each other or this machine.
    """
    plan = ProcessPlan(
        device=device,
        # detectron2's users write 0 for "no GPU"
        per_machine=max(args.num_gpus, 1) if device == "cpu" else args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )
    if plan.per_machine < 1 or plan.machines < 1:
        raise LaunchError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} makes no process",
            fix="give at least 1 of each",
        )
    if not 0 <= plan.machine_rank < plan.machines:
        raise LaunchError(
            f"--machine-rank {plan.machine_rank} with --num-machines {plan.machines}",
            fix=f"machines are numbered 0 to {plan.machines - 1}",
        )
    if device == "cuda" and plan.per_machine > torch.cuda.device_count():
        raise LaunchError(
            f"--num-gpus {plan.per_machine}: this machine has {torch.cuda.device_count()} GPU(s)",
            fix=f"give --num-gpus {torch.cuda.device_count()} or check CUDA_VISIBLE_DEVICES",
        )
    if plan.machines > 1 and not plan.dist_url.startswith("tcp://"):
        raise LaunchError(
            f"--dist-url {plan.dist_url} cannot connect {plan.machines} machines",
            fix="give --dist-url tcp://HOST:PORT of machine 0 on every machine",
        )
    return plan


def run_on_main(action: Callable[[], T]) -> T:
    """Run a check in the main process only; its ExtError is raised in every process.

    All processes must call this. The result travels to all of them, so it should be small.
    """
    outcome: Any = None
    if comm.is_main_process():
        try:
            outcome = (True, action())
        except ExtError as error:
            outcome = (False, error)
    ok, value = comm.all_gather(outcome)[0]
    if not ok:
        raise value
    result: T = value
    return result


def _run_joined(
    main: Callable[[argparse.Namespace], T],
    args: argparse.Namespace,
    joined: JoinedProcess,
    device: str,
    timeout: timedelta,
) -> T:
    if joined.world_size == 1:
        return main(args)
    _prepare_process(device, joined.local_rank)
    store, _, _ = next(
        dist.rendezvous(joined.init_method, joined.rank, joined.world_size, timeout=timeout)
    )
    # torchrun's store outlives a restart: without a prefix of its own, the new group reads the
    # addresses of processes that are dead
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore(f"start {joined.restarts}", store),
        rank=joined.rank,
        world_size=joined.world_size,
        timeout=timeout,
    )
    _create_local_group(joined.local_size)
    result = main(args)
    _leave_group()
    return result


def _start_processes(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    plan: ProcessPlan,
    timeout: timedelta,
) -> None:
    with ErrorBoard.create() as board, handing_on_signals():
        try:
            if plan.device == "cuda":
                _detectron2_launch(
                    _reporting_main,
                    plan.per_machine,
                    num_machines=plan.machines,
                    machine_rank=plan.machine_rank,
                    dist_url=plan.dist_url,
                    args=(main, args, board),
                    timeout=timeout,
                )
            else:
                _spawn_on_cpu(main, args, plan, timeout, board)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise rebuild_error(board, error) from None


def _spawn_on_cpu(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    plan: ProcessPlan,
    timeout: timedelta,
    board: ErrorBoard,
) -> None:
    dist_url, server = plan.dist_url, None
    if dist_url == "auto":
        # held open by this process: a free port cannot be taken by somebody else in between
        server = dist.TCPStore(_LOCALHOST, 0, is_master=True, wait_for_workers=False)
        dist_url = f"auto:{server.port}"
    given = (main, args, plan, dist_url, timeout, board)
    context = mp.spawn(_cpu_worker, given, nprocs=plan.per_machine, join=False)
    try:
        while not context.join():
            pass
    finally:
        codes = [process.exitcode for process in context.processes]
        board.note_exits(codes, first_rank=plan.machine_rank * plan.per_machine)
        del server


def _cpu_worker(
    local_rank: int,
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    plan: ProcessPlan,
    dist_url: str,
    timeout: timedelta,
    board: ErrorBoard,
) -> None:
    rank = plan.machine_rank * plan.per_machine + local_rank
    with board.reporting(rank):
        _prepare_process("cpu", local_rank)
        rendezvous: dict[str, Any] = {"init_method": dist_url}
        if dist_url.startswith("auto:"):
            port = int(dist_url.removeprefix("auto:"))
            rendezvous = {"store": dist.TCPStore(_LOCALHOST, port, is_master=False)}
            _stay_on_loopback(os.environ)
        dist.init_process_group(
            "gloo", rank=rank, world_size=plan.world_size, timeout=timeout, **rendezvous
        )
        _create_local_group(plan.per_machine)
        main(args)
        _leave_group()


def _reporting_main(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, board: ErrorBoard
) -> None:
    """What detectron2's launch runs in each of its processes."""
    with board.reporting(comm.get_rank()):
        main(args)
        _leave_group()


def _prepare_process(device: str, local_rank: int) -> None:
    """Choose this process' GPU, or keep it to one CPU thread."""
    # from detectron2 0.6, with every object that processes exchange
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    if sys.platform.startswith("linux"):
        # a spawned process would spawn its loader workers too: a new interpreter for each, and a
        # copy of the annotations instead of shared pages
        mp.set_start_method("fork", force=True)
    if device == "cuda":
        # Slurm may show each task its own GPU only
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        # several processes with several OpenMP threads each spin instead of working
        torch.set_num_threads(1)


def _stay_on_loopback(environment: MutableMapping[str, str]) -> None:
    """gloo looks the host's name up otherwise, which fails on machines without one."""
    if sys.platform.startswith("linux"):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _create_local_group(local_size: int) -> None:
    """Tell detectron2 which processes share a machine; ranks of a machine are consecutive."""
    world_size = dist.get_world_size()
    if world_size % local_size:
        raise LaunchError(
            f"{world_size} processes are not a multiple of {local_size} per machine",
            fix="start the same number of processes on every machine",
        )
    if hasattr(comm, "create_local_process_group"):  # detectron2 main
        comm.create_local_process_group(local_size)
    else:
        mine = dist.get_rank() // local_size
        for machine in range(world_size // local_size):
            first = machine * local_size
            group = dist.new_group(list(range(first, first + local_size)))
            if machine == mine:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _leave_group() -> None:
    comm.synchronize()
    # a group that is only freed while the interpreter ends may end it with an abort
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()
