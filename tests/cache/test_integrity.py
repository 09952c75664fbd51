"""repair, --rerun-teacher, the fitted codec in a cache, and the loader's two ways with damage."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.config import RepairConfig
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.repair import repair
from gkd_scale.cache.rerun import rerun
from gkd_scale.cache.shard import parse_index
from gkd_scale.cache.spec import read_spec
from gkd_scale.cache.verify import verify
from gkd_scale.errors import CacheError, ConfigError, DamageError

from .support import TinyTeacher, config, tree

Whole = tuple[Path, BuildReport]


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def mend(out: Path, images: Path, teacher: TinyTeacher | None = None) -> tuple[BuildReport, list[str]]:
    lines: list[str] = []
    cfg = RepairConfig(out, images, batch_size=3, workers=2)
    return repair(cfg, read_spec(out), teacher or TinyTeacher(), lines.append, quiet=True), lines


# ------------------------------------------------------------------------------------- repair


def test_repair_rebuilds_what_is_bad_and_nothing_else(whole: Whole, images: Path, copy: Any) -> None:
    out = copy()
    flip(out / "v00/shard-000001.tar", 700)
    (out / "v01/shard-000002.parquet").unlink()
    mtime = (out / "v00/shard-000000.tar").stat().st_mtime_ns
    teacher = TinyTeacher()
    report, lines = mend(out, images, teacher)
    assert report.shards_built == 2 and teacher.calls <= 4
    assert any(line.startswith("v00/shard-000001.tar: ") for line in lines)
    assert any(line.startswith("v01/shard-000002.parquet: missing") for line in lines)
    assert (out / "v00/shard-000000.tar").stat().st_mtime_ns == mtime
    assert tree(out) == tree(whole[0])


def test_any_flipped_bit_outside_the_spec_is_mended(whole: Whole, images: Path, copy: Any) -> None:
    out, random = copy(), Random(3)
    files = sorted(path for path in out.rglob("*") if path.stat().st_size and path.suffix != "")
    for path in [path for path in files if path.is_file() and path.name != "cache.json"]:
        flip(path, random.randrange(path.stat().st_size), random.randrange(8))
        mend(out, images)
        assert tree(out) == tree(whole[0]), path


def test_a_whole_cache_needs_no_repair(whole: Whole, images: Path) -> None:
    teacher, before = TinyTeacher(), tree(whole[0])
    report, lines = mend(whole[0], images, teacher)
    assert (report.shards_built, teacher.calls, lines) == (0, 0, []) and tree(whole[0]) == before


def test_repair_with_other_images_or_another_teacher_drops_nothing(images: Path, copy: Any) -> None:
    out = copy()
    flip(out / "v00/shard-000001.tar", 700)
    before = tree(out)
    with pytest.raises(CacheError, match=r"teacher.gain: the cache has 1.0, asked for 3"):
        mend(out, images, TinyTeacher(gain=3))
    with pytest.raises(CacheError, match="the image folder changed"):
        mend(out, images / "b")
    assert tree(out) == before


def test_a_lost_spec_is_written_again_by_the_same_command_only(whole: Whole, images: Path, copy: Any) -> None:
    out = copy()
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b"{"), lambda p: flip(p, 300)):
        damage(out / "cache.json")
        before = tree(out)
        with pytest.raises((CacheError, DamageError)):
            build(config(images, out, seed=1), TinyTeacher(), quiet=True)
        assert tree(out) == before
        assert build(config(images, out), TinyTeacher(), quiet=True).shards_built == 0
        assert tree(out) == tree(whole[0])


# -------------------------------------------------------------------------------- fitted codecs


@pytest.fixture(scope="module")
def codec_cache(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "cache"
    build(config(images, out, codec="tc3", codec_fit=5), TinyTeacher(), quiet=True)
    return out


def test_a_fitted_codec_lies_in_the_cache_and_verify_covers_it(codec_cache: Path, whole: Whole) -> None:
    assert verify(codec_cache, print, quiet=True) == 0
    small, full = Cache.open(codec_cache), Cache.open(whole[0])
    for index in range(full.num_samples):
        one, other = small.read(1, index), full.read(1, index)
        assert (one.sid, one.jpeg) == (other.sid, other.jpeg)
        error = ((one.patches.astype(float) - other.patches) ** 2).sum()
        assert error < 0.05 * ((other.patches.astype(float) - other.patches.mean(0)) ** 2).sum() + 1e-3
    flip(codec_cache / "codec.safetensors", 200)
    lines: list[str] = []
    assert verify(codec_cache, lines.append, quiet=True) == 1 and lines[0].startswith(
        "codec.safetensors: SHA-256"
    )
    with pytest.raises(DamageError, match=r"codec\.safetensors.*does not match the spec"):
        Cache.open(codec_cache)
    flip(codec_cache / "codec.safetensors", 200)


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_a_broken_build_with_a_fitted_codec_goes_on_to_the_same_bytes(
    codec_cache: Path, images: Path, tmp_path: Path, fail_at: int
) -> None:
    cfg = config(images, tmp_path / "cache", codec="tc3", codec_fit=5)
    with pytest.raises(RuntimeError, match="the teacher broke"):
        build(cfg, TinyTeacher(fail_at=fail_at), quiet=True)
    build(cfg, TinyTeacher(), quiet=True)
    assert tree(cfg.out) == tree(codec_cache)
    flip(cfg.out / "codec.safetensors", 150)
    build(cfg, TinyTeacher(), quiet=True)
    assert tree(cfg.out) == tree(codec_cache)


def test_more_components_than_channels_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more components than the 12 channels"):
        build(config(images, tmp_path / "cache", codec="pca13"), TinyTeacher(), quiet=True)


# ------------------------------------------------------------------------------- rerun-teacher


def test_rerunning_the_teacher_agrees(whole: Whole, codec_cache: Path) -> None:
    for path in (whole[0], codec_cache):
        assert list(rerun(Cache.open(path), TinyTeacher(), 16)) == []


def test_tokens_of_another_sample_are_found(images: Path, tmp_path: Path) -> None:
    """A bug that shifts tokens by one sample leaves every checksum right."""

    class Shift(TinyTeacher):
        def __call__(self, pixels: Any) -> Any:
            return super().__call__(pixels.roll(1, 0))

    build(config(images, tmp_path), Shift(), quiet=True)
    assert verify(tmp_path, print, quiet=True) == 0
    lines = list(rerun(Cache.open(tmp_path), TinyTeacher(), 100))
    assert len(lines) >= 20 and "patch tokens differ from the teacher's by" in "\n".join(lines)


def test_another_teacher_is_refused_and_damage_is_a_line(copy: Any) -> None:
    out = copy()
    with pytest.raises(CacheError, match=r"gain: 1.0 in the cache, 2 here"):
        list(rerun(Cache.open(out), TinyTeacher(gain=2), 4))
    (out / "v00/shard-000000.tar").write_bytes(b"")
    assert any("shard-000000.tar" in line for line in rerun(Cache.open(out), TinyTeacher(), 20))


# --------------------------------------------------------------------------------- the loader


def damage_two(out: Path) -> list[str]:
    """Flip a bit of the tokens of two samples of view 0; returns their sids."""
    index = parse_index((out / "v00/shard-000001.parquet").read_bytes())
    hit = [member for member in index.members if member.member == "patch.npy"][:2]
    for member in hit:
        flip(out / "v00/shard-000001.tar", member.offset + member.bytes - 1)
    return [member.sid for member in hit]


def test_a_loader_that_meets_damage_names_file_member_and_repair(copy: Any) -> None:
    out = copy()
    sids = damage_two(out)
    with pytest.raises(DamageError) as met:
        list(CachedSource(Cache.open(out), global_batch=10, micro_batch=10).batches(0, 1))
    assert "v00/shard-000001.tar: " in met.value.message
    assert any(f"{sid}.patch.npy: CRC32 mismatch" in met.value.message for sid in sids)
    assert f"gkd-scale repair {out}" in met.value.hint


@pytest.mark.parametrize("workers", [0, 3])
def test_damage_can_be_skipped_and_is_counted(copy: Any, workers: int) -> None:
    out = copy()
    sids = damage_two(out)
    source = CachedSource(
        Cache.open(out), global_batch=10, micro_batch=10, workers=workers, skip_corrupt=True
    )
    first, second, third = source.batches(0, 3)
    assert len(first.sids) == 10 and len(set(first.sids)) == 8 and not set(sids) & set(first.sids)
    assert len(set(second.sids)) == 10, "view 1 is whole"
    assert set(third.sids) == set(first.sids)
    assert len(source.skipped) == 2
    assert all("CRC32 mismatch" in reason for reason in source.skipped.values())


def test_a_cache_without_a_whole_sample_cannot_be_skipped_through(copy: Any) -> None:
    out = copy()
    for tar in (out / "v00").glob("*.tar"):
        tar.write_bytes(b"")
    source = CachedSource(Cache.open(out), global_batch=1, micro_batch=1, skip_corrupt=True)
    with pytest.raises(DamageError, match="no sample of the cache"):
        next(source.batches(0, 1))
