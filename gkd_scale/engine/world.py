"""Which rank this process is and how the ranks find each other, from the environment that a launcher set.

``deepspeed`` and ``torchrun`` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A task of
``srun`` has Slurm's variables of its step: rank 0 should run on the node where ``srun`` was started, and the
port follows from the numbers of job and step. A script without any of them is a world of one. So is a batch
script outside ``srun``: there Slurm's variables describe the job, not this process.

All of it is checked first. Then the ranks call a roll: after a minute the first rank that has joined says
who is missing; after ten minutes (:data:`PATIENCE`) all give up.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gkd_scale.engine import interface
from gkd_scale.errors import ConfigError, UserError
from gkd_scale.ranges import RANKS

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = "GKD_SCALE_JOIN_SECONDS"
"""Environment variable: the seconds that ranks wait for each other at the start; default 600."""
REMARK_AFTER = 60.0
"""Seconds until the first rank says who is missing."""
UNKNOWN_NAME_AFTER = 15.0
"""Seconds until an unknown name in MASTER_ADDR is an error: the name of a new node may take a while."""
LOOK_EVERY = 0.1
DEFAULT_PORT = 29500
_VARIABLES = ("RANK", "WORLD_SIZE")
_START = "start it with deepspeed or torchrun, or unset RANK and WORLD_SIZE for one process"
_SLURM_START = "start it with srun, or unset Slurm's variables"


@dataclass(frozen=True)
class Place:
    """``rank`` of ``world``, number ``local`` on its machine; rank 0 listens at ``host`` and ``port``."""

    rank: int
    world: int
    local: int
    host: str
    port: int

    def variables(self) -> dict[str, str]:
        """The environment variables of this place, as launchers set them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local),
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
        }


def place(environment: Mapping[str, str]) -> Place:
    """The place that ``environment`` gives this process.

    Raises ConfigError if it gives none. Its rank is unknown then: every process reports as rank 0 does.
    """
    try:
        return _place(environment)
    except ConfigError as error:
        error.on_rank = 0
        raise


def _place(environment: Mapping[str, str]) -> Place:
    if not any(name in environment for name in _VARIABLES) and _is_step(environment):
        return _slurm(environment)
    present = [name for name in _VARIABLES if name in environment]
    if len(present) == 1:
        (missing,) = set(_VARIABLES) - set(present)
        raise ConfigError(f"{present[0]} is set and {missing} is not", _START)
    rank, world = (_number(environment, name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    _check_rank(environment, "RANK", rank, "WORLD_SIZE", world, _START)
    if world > 1 and "LOCAL_RANK" not in environment:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={world} are set and LOCAL_RANK is not",
            "start it with deepspeed or torchrun, or export LOCAL_RANK: 0, 1, ... on each machine",
        )
    local = _number(environment, "LOCAL_RANK", 0)
    _check_rank(environment, "LOCAL_RANK", local, "WORLD_SIZE", world, _START)
    local_size = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environment), None)
    if local_size is not None:
        _check_rank(environment, "LOCAL_RANK", local, local_size, _number(environment, local_size, 1), _START)
    return Place(rank, world, local, environment.get("MASTER_ADDR", "127.0.0.1"), _port(environment, world))


def unused_tasks(environment: Mapping[str, str]) -> int:
    """How many tasks of a Slurm job are idle because the script was started without ``srun``."""
    if any(name in environment for name in _VARIABLES) or "SLURM_PROCID" not in environment:
        return 0
    text = environment.get("SLURM_NTASKS", "1")
    tasks = int(text) if text.isdecimal() else 1
    return 0 if _is_step(environment) else tasks - 1


def _is_step(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks of ``srun``: only a step has these variables."""
    if "SLURM_STEP_NUM_TASKS" not in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(environment):
        return False
    name = _step_size(environment)
    return name in environment and _number(environment, name, 1, _SLURM_START) != 1


def _step_size(environment: Mapping[str, str]) -> str:
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"


def _slurm(environment: Mapping[str, str]) -> Place:
    size = _step_size(environment)
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        if name not in environment:
            raise ConfigError(f"{size}={environment[size]} is set and {name} is not", _SLURM_START)
    world, rank, local = (
        _number(environment, name, 0, _SLURM_START) for name in (size, "SLURM_PROCID", "SLURM_LOCALID")
    )
    _check_rank(environment, "SLURM_PROCID", rank, size, world, _SLURM_START)
    _check_rank(environment, "SLURM_LOCALID", local, size, world, _SLURM_START)
    host = environment.get("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    if "MASTER_PORT" in environment:
        return Place(rank, world, local, host, _port(environment, world))
    numbers = [environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    port = 20000 + sum(int(text) for text in numbers if text.isdecimal()) % 20000
    return Place(rank, world, local, host, port)


def _number(environment: Mapping[str, str], name: str, default: int, hint: str = _START) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}, no whole number", hint) from None


def _check_rank(
    environment: Mapping[str, str], name: str, rank: int, size: str, world: int, hint: str
) -> None:
    if world < 1:
        raise ConfigError(f"{size} is {world}, not at least 1", hint)
    if world not in RANKS:
        raise ConfigError(f"{size} is {world}: it must be {RANKS.text()}", hint)
    if not 0 <= rank < world:
        whole = f"{size}={world}" if size in environment else "a world of one"
        raise ConfigError(f"{name}={rank} is none of the ranks 0 to {world - 1} of {whole}", hint)


def _port(environment: Mapping[str, str], world: int) -> int:
    if world == 1:
        return free_port()
    port = _number(environment, "MASTER_PORT", DEFAULT_PORT)
    if not 0 < port < 2**16:
        raise ConfigError(f"MASTER_PORT is {port}, no port", "give 1 to 65535, such as 29500")
    return port


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))  # on every address: ranks on other nodes come to it
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------------------------------ the roll


def patience(environment: Mapping[str, str], rank: int) -> float:
    """Seconds that ranks wait for each other; ConfigError if :data:`PATIENCE` is not a positive number."""
    text = environment.get(PATIENCE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            f"{PATIENCE} is {text!r}, no number of seconds", "leave it out for 600", on_rank=rank
        )
    return seconds


def gather(at: Place, agent: str | None, wait: float, say: Callable[[str], object]) -> Store:
    """Wait until all ranks of a world have joined; the store through which they find each other.

    ``agent`` is the number of torchrun's attempt, whose agent serves the store; without one rank 0 does.
    ``say`` prints a remark. Raises ConfigError if the address or the port cannot be used, UserError if
    ranks are missing after ``wait`` seconds. ``on_rank`` is this rank if rank 0 cannot report the error.
    """
    if at.world == 1:
        from torch._C._distributed_c10d import HashStore

        return HashStore()
    began = time.monotonic()
    _resolve(at)
    serves = at.rank == 0 and agent is None
    if not serves:
        _await_rank_0(at, began, wait, say)
    store = _store(at, serves)
    names = [f"gkd-scale/{agent or 0}/rank/{rank}" for rank in range(at.world)]
    try:
        if store.add(f"{names[at.rank]}/count", 1) > 1:
            raise ConfigError(
                f"rank {at.rank} of {at.world} is there twice at {at.host}:{at.port}",
                "another launch uses this port: give this one a port of its own (deepspeed --master_port N)",
            )
        interface.offer(store, at.host)
        store.set(names[at.rank], str(at.world))
        _roll_call(at, store, names, began, wait, say)
    except ConfigError as error:
        error.on_rank = at.rank
        raise
    except RuntimeError:  # of the store: rank 0 gave up, and has said why
        raise UserError("rank 0 left while the ranks were joining", "see what it said") from None
    return store


def _roll_call(
    at: Place,
    store: Store,
    names: list[str],
    began: float,
    wait: float,
    say: Callable[[str], object],
) -> None:
    """Return once all ranks have joined; UserError after ``wait`` seconds, ConfigError for another world."""
    remarked = False
    missing = list(range(at.world))
    while missing := [rank for rank in missing if not _has_joined(at, store, rank, names[rank])]:
        seconds = time.monotonic() - began
        first = next(rank for rank in range(at.world) if rank not in missing)
        text = f"{in_words(missing)} of {at.world} {'is' if len(missing) == 1 else 'are'} missing"
        if seconds > REMARK_AFTER and not remarked and at.rank == first:
            remarked = True
            say(f"waiting: after {seconds:.0f} s {text} at {at.host}:{at.port}")
        if seconds > wait + (at.rank != first):
            raise UserError(
                f"{text} after {seconds:.0f} s at {at.host}:{at.port}",
                "look at their output, and start all at once; they must reach this address "
                f"({PATIENCE} sets how many seconds the others wait for them)",
                on_rank=first if at.rank == first else None,
            )
        time.sleep(LOOK_EVERY)


def _has_joined(at: Place, store: Store, rank: int, name: str) -> bool:
    """Whether ``rank`` has joined; ConfigError if it has another world size."""
    if not store.check([name]):
        return False
    world = int(store.get(name))
    if world != at.world:
        raise ConfigError(
            f"rank {at.rank} has WORLD_SIZE={at.world}, rank {rank} at {at.host}:{at.port} has {world}",
            "give all ranks the same, or this launch a port of its own (deepspeed --master_port N)",
        )
    return True


def in_words(ranks: list[int]) -> str:
    """``rank 3``, or ``ranks 3, 4 and 9``; of many the first ones and their number."""
    numbers = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"


def _resolve(at: Place) -> None:
    """ConfigError if the name in MASTER_ADDR stays unknown."""
    deadline = time.monotonic() + UNKNOWN_NAME_AFTER
    while True:
        try:
            socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or error
                raise ConfigError(
                    f"MASTER_ADDR is '{at.host}', which is no known machine ({reason})",
                    "give the name or the address of the machine of rank 0",
                    on_rank=at.rank,
                ) from None
        time.sleep(0.5)


def _await_rank_0(at: Place, began: float, wait: float, say: Callable[[str], object]) -> None:
    """Return once a process listens at rank 0's address; UserError after ``wait`` seconds."""
    remarked = False
    while True:
        try:
            socket.create_connection((at.host, at.port), timeout=5).close()
            return
        except OSError as error:
            seconds = time.monotonic() - began
            reason = error.strerror or str(error)
        text = f"rank 0 does not answer at {at.host}:{at.port} ({reason})"
        if seconds > REMARK_AFTER and not remarked and at.local == 0:
            remarked = True
            say(f"waiting: after {seconds:.0f} s {text}")
        if seconds > wait:
            raise UserError(
                f"after {seconds:.0f} s {text}",
                "see whether rank 0 was started, and whether MASTER_ADDR and MASTER_PORT are its address "
                f"({PATIENCE} sets how many seconds the others wait for it)",
                on_rank=at.rank,
            )
        time.sleep(max(LOOK_EVERY, min(1.0, seconds / 10)))


def _store(at: Place, serves: bool) -> Store:
    """The store: this process serves it, or connects to it. ConfigError or UserError if it cannot."""
    from torch._C._distributed_c10d import TCPStore

    timeout = datetime.timedelta(seconds=30)
    try:
        return TCPStore(
            "127.0.0.1" if serves else at.host,
            at.port,
            at.world,
            serves,
            timeout,
            wait_for_workers=False,
            multi_tenant=serves,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        if serves:
            in_use = "EADDRINUSE" in reason
            raise ConfigError(
                f"port {at.port} of this machine {'is taken' if in_use else 'cannot be used'}: rank 0 "
                f"cannot listen there{'' if in_use else f' ({reason})'}",
                "give this launch a port of its own: deepspeed --master_port N, torchrun "
                "--master-port N, or MASTER_PORT=N",
                on_rank=at.rank,
            ) from None
        raise UserError(
            f"rank 0 at {at.host}:{at.port} does not answer as one ({reason})",
            "check MASTER_PORT",
            on_rank=at.rank,
        ) from None
