"""Batches on their way to a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gkd_scale.engine.feed import feed, map_tensors
from gkd_scale.types import Batch, Features


def test_every_tensor_of_a_batch_is_changed_and_nothing_else() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    teacher = Features(torch.zeros(2, 5).half(), torch.zeros(2, 6, 5).half())
    batch = Batch(pixels, teacher, ("a", "b"), (0, 0), (0, 1))
    tensors: list[Tensor] = []

    def change(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor + 1

    other = map_tensors(batch, change)
    assert {id(tensor) for tensor in tensors} == {id(pixels), *map(id, teacher)}
    assert isinstance(other.teacher, Features) and other.teacher.patches.dtype == torch.float16
    assert bool((other.pixels == 1).all()) and other.sids == ("a", "b")
    tree = map_tensors({"x": [torch.ones(1), (torch.ones(1), 3)], "y": "text"}, change)
    assert float(tree["x"][1][0]) == 2 and tree["x"][1][1] == 3 and tree["y"] == "text"


def test_on_a_cpu_batches_pass_as_they_are_one_at_a_time() -> None:
    indices: list[int] = []

    def batches() -> Iterator[Tensor]:
        for index in range(3):
            indices.append(index)
            yield torch.tensor(index)

    stream = feed(batches(), torch.device("cpu"))
    assert int(next(stream)) == 0 and indices == [0]
    assert [int(value) for value in stream] == [1, 2]
