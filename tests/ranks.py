"""A process of a test as one of two ranks."""

from __future__ import annotations

import os

import torch

from gkd_scale.engine.runtime import Runtime


def become_rank(rank: int, port: int) -> Runtime:
    """This process as rank 0 or 1 of two that meet at ``port``, with gloo and one thread."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    return Runtime.start()
