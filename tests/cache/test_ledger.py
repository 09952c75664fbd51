from __future__ import annotations

from pathlib import Path

import pytest

from gkd_scale.cache.ledger import check_ledger, record
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.errors import RunError

Whole = tuple[Path, BuildReport]


def train(cache: Cache, folder: Path, start: int, stop: int, world: int) -> None:
    """What a run of ``world`` ranks writes for steps [start, stop): 6 samples a step."""
    for rank in range(world):
        source = CachedSource(
            cache, global_batch=6, micro_batch=6 // world // 1, rank=rank, world=world, seed=2
        )
        assert len(list(record(source.batches(start, stop), folder, rank, start, 1))) == stop - start


def sids(cache: Cache) -> list[str]:
    return [sid for shard in range(len(cache.shard_sizes)) for sid in cache.sids(shard)]


def test_a_run_killed_and_gone_on_with_other_ranks_uses_each_sample_once(
    whole: Whole, tmp_path: Path
) -> None:
    cache = Cache.open(whole[0])
    train(cache, tmp_path, 0, 4, world=2)
    with open(tmp_path / "rank-000.tsv", "a") as file:
        file.write("4\t0\t2\t0123")  # the kill
    train(cache, tmp_path, 3, 10, world=3)
    assert check_ledger(tmp_path, sids(cache)) == (6, [])


def test_accumulation_counts_as_one_step(whole: Whole, tmp_path: Path) -> None:
    cache = Cache.open(whole[0])
    source = CachedSource(cache, global_batch=6, micro_batch=2, accumulation=3)
    list(record(source.batches(5, 10), tmp_path, 0, 5, 3))
    steps = {line.split("\t")[0] for line in (tmp_path / "rank-000.tsv").read_text().split("\n") if line}
    assert steps == {"5", "6", "7", "8", "9"}
    assert check_ledger(tmp_path, sids(cache)) == (3, [])


def test_a_sample_used_twice_one_left_out_and_a_contradiction_are_found(whole: Whole, tmp_path: Path) -> None:
    cache = Cache.open(whole[0])
    train(cache, tmp_path, 0, 5, world=1)
    path = tmp_path / "rank-000.tsv"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:3], lines[3].replace(lines[3][-16:], lines[2][-16:]), *lines[4:]]))
    complete, faults = check_ledger(tmp_path, sids(cache))
    assert complete == 2 and faults == ["epoch 0: 1 sids twice, 1 missing, 0 not of the cache"]
    with open(path, "a") as file:
        file.write(f"0\t0\t0\t{'f' * 16}\n")
    assert any("step 0, position 0" in line for line in check_ledger(tmp_path, sids(cache))[1])


def test_no_ledger_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no ledger"):
        check_ledger(tmp_path, [])
