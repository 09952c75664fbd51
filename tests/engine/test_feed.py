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
    seen: list[Tensor] = []

    def change(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor + 1

    changed = map_tensors(batch, change)
    assert {id(tensor) for tensor in seen} == {id(pixels), *map(id, teacher)}
    assert isinstance(changed.teacher, Features) and changed.teacher.patches.dtype == torch.float16
    assert bool((changed.pixels == 1).all()) and changed.sids == ("a", "b")
    nested = map_tensors({"x": [torch.ones(1), (torch.ones(1), 3)], "y": "text"}, change)
    assert float(nested["x"][1][0]) == 2 and nested["x"][1][1] == 3 and nested["y"] == "text"


def test_on_a_cpu_batches_pass_as_they_are_one_at_a_time() -> None:
    taken: list[int] = []

    def batches() -> Iterator[Tensor]:
        for index in range(3):
            taken.append(index)
            yield torch.tensor(index)

    fed = feed(batches(), torch.device("cpu"))
    assert int(next(fed)) == 0 and taken == [0]
    assert [int(value) for value in fed] == [1, 2]
