"""Recognising that this process was started as one of many, by torchrun or by Slurm's ``srun``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ext_common.errors import LaunchError

# below the ports that Linux gives to outgoing connections
_FIRST_SLURM_PORT = 20_000
_SLURM_PORTS = 12_000


@dataclass(frozen=True)
class JoinedProcess:
    """This process' place in a group that somebody else started.

    Args:
        rank: number among all processes, from 0.
        world_size: number of processes.
        local_rank: number on this machine, from 0.
        local_size: processes per machine.
        init_method: where they meet, as torch.distributed takes it.
        restarts: how often torchrun has started the group again.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    init_method: str
    restarts: int = 0


def find_joined_process(environment: Mapping[str, str]) -> JoinedProcess | None:
    """Read torchrun's or Slurm's variables; None where this process stands alone.

    Args:
        environment: usually ``os.environ``.

    Raises:
        LaunchError: variables that contradict each other or are incomplete.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _from_torchrun(environment)
    if "SLURM_PROCID" in environment and _slurm_tasks(environment) > 1:
        return _from_slurm(environment)
    return None


def first_host(node_list: str) -> str:
    """First host of a Slurm node list: ``gpu[003-005,9],login`` -> ``gpu003``.

    Raises:
        LaunchError: not a node list.
    """
    match = re.match(r"([^,\[\]\s]+)(?:\[([^\]]+)\])?([^,\[\]\s]*)", node_list.strip())
    if match is None:
        raise LaunchError(
            f"cannot read a host from {node_list!r}",
            where="SLURM_NODELIST",
            fix="set MASTER_ADDR to the first machine's name",
        )
    prefix, ranges, suffix = match.groups()
    if ranges is None:
        return prefix
    return prefix + re.split(r"[,-]", ranges)[0] + suffix


def _from_torchrun(environment: Mapping[str, str]) -> JoinedProcess:
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if world_size > 1 and name not in environment:
            raise LaunchError(
                f"RANK and WORLD_SIZE are set, {name} is not",
                where="environment",
                fix="start with torchrun, or unset RANK and WORLD_SIZE",
            )
    return _checked(
        JoinedProcess(
            rank=rank,
            world_size=world_size,
            local_rank=_number(environment, "LOCAL_RANK", rank),
            local_size=_number(environment, "LOCAL_WORLD_SIZE", world_size),
            init_method="env://",
            restarts=_number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
        )
    )


def _from_slurm(environment: Mapping[str, str]) -> JoinedProcess:
    world_size = _slurm_tasks(environment)
    host = environment.get("MASTER_ADDR")
    if not host:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
        host = first_host(nodes or environment.get("SLURM_NODELIST", ""))
    # every task must come to the same port without talking to the others
    job = _number(environment, "SLURM_JOB_ID", 0)
    port = _number(environment, "MASTER_PORT", _FIRST_SLURM_PORT + job % _SLURM_PORTS)
    machines = _number(environment, "SLURM_STEP_NUM_NODES", 0) or _number(
        environment, "SLURM_NNODES", 1
    )
    return _checked(
        JoinedProcess(
            rank=_number(environment, "SLURM_PROCID"),
            world_size=world_size,
            local_rank=_number(environment, "SLURM_LOCALID"),
            local_size=-(-world_size // machines),
            init_method=f"tcp://{host}:{port}",
        )
    )


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of this ``srun``; a batch script may have asked for more than it starts here."""
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _number(environment, name, 1)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise LaunchError(f"{name}={text!r} is not a number", where="environment") from None


def _checked(process: JoinedProcess) -> JoinedProcess:
    if 0 <= process.rank < process.world_size and 0 <= process.local_rank < process.local_size:
        return process
    raise LaunchError(
        f"rank {process.rank} of {process.world_size}, "
        f"local rank {process.local_rank} of {process.local_size}",
        where="environment",
        fix="check what RANK, WORLD_SIZE, LOCAL_* or SLURM_* are set to",
    )
