"""Rank, world and device, however the script was started.

``deepspeed`` and ``torchrun`` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; under Slurm
they follow from its own variables (rank 0 is taken to be on the node that ``srun`` was started on, and
the port follows from the job's number); started alone, a script becomes a world of one. On a CPU the
backend is gloo, on GPUs NCCL.
"""

from __future__ import annotations

import datetime
import logging
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gkd_scale.errors import GkdError

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """This process's place among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and talks to the user."""
        return self.rank == 0

    @classmethod
    def start(cls) -> Runtime:
        """Join the process group that the launcher's environment names."""
        environment()
        import deepspeed

        # DeepSpeed's CPU kernel for shared-memory collectives takes two minutes to compile and leaks
        # 66 MiB of /dev/shm a rank; gloo alone gives the same results.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        cuda = torch.cuda.is_available()
        local = int(os.environ["LOCAL_RANK"])
        if cuda:
            torch.cuda.set_device(local)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deepspeed.init_distributed(
                dist_backend="nccl" if cuda else "gloo",
                auto_mpi_discovery=False,
                timeout=datetime.timedelta(hours=12),
                verbose=False,
            )
        if not cuda:
            _share_cores()
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)

    def stop(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def share(self, value: T) -> T:
        """Rank 0's value, on every rank. It must be picklable; it travels between our own processes only."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over ranks; the input is left alone."""
        total = tensor.clone()
        if self.world > 1:
            on_device = total.to(self.device)
            dist.all_reduce(on_device)
            total = on_device.to(tensor.device)
        return total

    def on_main(self, work: Callable[[], T]) -> T:
        """``work()`` on rank 0; its result, or its GkdError or OSError, reaches every rank."""
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


def environment() -> None:
    """Fill what a launcher would have set, so that a script started alone is a world of one."""
    if (
        "RANK" not in os.environ
        and "SLURM_PROCID" in os.environ
        and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    ):
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))
    for key in ("RANK", "LOCAL_RANK"):
        os.environ.setdefault(key, "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())


def _share_cores() -> None:
    """Divide this machine's cores among its ranks: ranks that all use all cores wait for each other."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(
            os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"]))
        )
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
