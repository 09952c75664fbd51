"""A process of a test as one of several ranks."""

from __future__ import annotations

import os

import torch

from gkd_scale.engine.runtime import Runtime


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that a launcher gives a rank on this machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {**{key: str(value) for key, value in place.items()}, "MASTER_ADDR": "127.0.0.1"}


def become_rank(rank: int, port: int) -> Runtime:
    """This process as rank 0 or 1 of two that meet at ``port``, with gloo and one thread."""
    os.environ.update(rank_environment(rank, 2, port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    return Runtime.start()
