"""This process's rank, world and device (:mod:`.world` finds them), and its collectives.

The backend is gloo on a CPU and NCCL on GPUs.
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from gkd_scale import console
from gkd_scale.engine import interface, zero
from gkd_scale.engine import world as worlds
from gkd_scale.engine.world import free_port as free_port
from gkd_scale.errors import ConfigError, GkdError

T = TypeVar("T")

JOIN = datetime.timedelta(minutes=10)
"""How long ranks that have all joined may take to connect to each other."""
WAIT = datetime.timedelta(hours=12)
"""How long a rank waits for the others before and after training: rank 0 may be building a cache."""


@dataclass(frozen=True)
class Runtime:
    """This process's place among its peers.

    ``simulated``: the other ranks do not exist, and collectives return at once with this rank's values.
    """

    rank: int
    world: int
    device: torch.device
    simulated: bool = False

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def checked_for(self) -> torch.device:
        """The device that a DeepSpeed JSON must suit: a GPU if the other ranks are simulated."""
        return torch.device("cuda") if self.simulated else self.device

    @classmethod
    def start(cls, ranks: int | None = None) -> Runtime:
        """Join the process group that the launcher's environment names.

        With ``ranks``, this process, which must be alone, is rank 0 of that many simulated ranks.
        """
        at = worlds.place(os.environ)
        if ranks is not None and ranks != at.world:
            return cls._plan(at, ranks)
        wait = worlds.patience(os.environ, at.rank)
        interface.require_known(os.environ)
        if idle := worlds.unused_tasks(os.environ):
            _remark(f"one process: the other {idle} tasks of this Slurm job are idle, start it with srun")
        device = _device(at)
        cuda = device.type == "cuda"
        os.environ.update(at.variables())
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if agent else None
        store = worlds.gather(at, attempt, wait, _remark)
        if cuda:
            torch.cuda.set_device(device)
        elif at.world > 1 and (name := interface.choose(store)):
            os.environ[interface.VARIABLE] = name
        if not dist.is_initialized():
            _join(at, store, device)
        _tell_deepspeed(device)
        if not cuda:
            _share_cores()
        return cls(at.rank, at.world, device)

    @classmethod
    def _plan(cls, at: worlds.Place, ranks: int) -> Runtime:
        """Rank 0 of ``ranks`` in PyTorch's fake process group; ConfigError if the launch has others."""
        from torch.testing._internal.distributed import fake_pg

        if at.world > 1:
            raise ConfigError(
                f"--world {ranks} is planned by one process, and this launch has {at.world}",
                "start it with python, or with deepspeed --num_gpus 1; or leave --world out",
            )
        device = _device(at)
        os.environ.update(replace(at, world=ranks).variables())
        dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=ranks)
        _tell_deepspeed(device)
        return cls(0, ranks, device, simulated=True)

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank. It must be picklable; only our own processes exchange it."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over ranks; the input is left alone."""
        total = tensor.clone()
        if self.world > 1:
            on_device = total.to(self.device)
            dist.all_reduce(on_device)
            total = on_device.to(tensor.device)
        return total

    def on_main(self, work: Callable[[], T]) -> T:
        """Call ``work`` on rank 0. Every rank returns its result, or raises its GkdError or OSError."""
        outcome: tuple[Any, BaseException | None] = (None, None)
        if self.main:
            try:
                outcome = (work(), None)
            except (GkdError, OSError) as error:
                outcome = (None, error)
        result, failure = self.share(outcome)
        if failure is not None:
            raise failure
        return result


def _remark(text: str) -> None:
    console.err.print(f"[yellow]{console.escape(text)}[/]")


def _device(at: worlds.Place) -> torch.device:
    """This rank's GPU, or the CPU of a machine without any; ConfigError if there is no GPU left for it."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if at.local < count:
        return torch.device("cuda", at.local)
    if count == 1 and "SLURM_LOCALID" in os.environ:  # Slurm shows each task its own GPU alone
        return torch.device("cuda", 0)
    raise ConfigError(
        f"rank {at.rank} is number {at.local} on its machine, which shows {count} GPU(s)",
        "start as many ranks as there are GPUs (deepspeed --num_gpus N), or see CUDA_VISIBLE_DEVICES",
        on_rank=at.rank,
    )


def _join(at: worlds.Place, store: Store, device: torch.device) -> None:
    """Connect to the other ranks, all of which have joined."""
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore("gkd-scale/group", store),
        rank=at.rank,
        world_size=at.world,
        timeout=JOIN,
        device_id=device if cuda and at.world > 1 else None,
    )
    store.set_timeout(WAIT)
    set_timeouts(WAIT)


def set_timeouts(wait: datetime.timedelta) -> None:
    """Let collectives of all process groups, DeepSpeed's too, wait that long for the other ranks."""
    set_timeout: Any = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(wait, group)


def _tell_deepspeed(device: torch.device) -> None:
    """Let DeepSpeed use the existing process group."""
    accelerator = os.environ.get("DS_ACCELERATOR", device.type)  # DeepSpeed reads it when it is imported
    if accelerator != device.type:
        raise ConfigError(
            f"DS_ACCELERATOR is '{accelerator}', and this run uses {device.type}", "unset DS_ACCELERATOR"
        )
    import deepspeed

    zero.without_shared_memory_kernel()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            timeout=WAIT,
            verbose=False,
        )


def _share_cores() -> None:
    """Divide this machine's cores among its ranks: ranks that all use all cores wait for each other."""
    if "OMP_NUM_THREADS" not in os.environ:
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
        ranks = next(int(os.environ[name]) for name in names if name in os.environ)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
