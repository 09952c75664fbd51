"""The paper's benchmarks name parts that exist, of one class list."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_scale.errors import ConfigError
from gkd_scale.segment.datasets.benchmarks import BENCHMARKS
from gkd_scale.segment.datasets.registry import ADAPTERS, parse


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark(name: str) -> None:
    benchmark = BENCHMARKS[name]
    found = benchmark.resolve({adapter: Path("data", adapter) for adapter in benchmark.adapters()})
    refs = [parse(ref) for ref in (*found.train, *found.val, *found.targets.values())]
    assert all(ref.path == Path("data", ref.adapter) for ref in refs)
    for ref in refs:
        ADAPTERS[ref.adapter].part(ref.part)
    assert len({tuple(ADAPTERS[ref.adapter].labels.classes) for ref in refs}) == 1
    assert not {*found.train, *found.val} & {*found.targets.values()}


def test_missing_folders_are_named() -> None:
    with pytest.raises(ConfigError, match="no folder is given for bdd100k, mapillary"):
        BENCHMARKS["gtav"].resolve({"gtav": Path("a"), "cityscapes": Path("b")})
