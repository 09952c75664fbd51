from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.shard import parse_index
from gkd_scale.cache.verify import verify
from gkd_scale.errors import CacheError, GkdError

from .support import TinyTeacher, config, tree

Whole = tuple[Path, BuildReport]


def lines_of(path: Path) -> list[str]:
    lines: list[str] = []
    assert verify(path, lines.append, quiet=True) == len(lines)
    assert all("\n" not in line for line in lines)
    return lines


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_whole_cache_has_no_line(whole: Whole) -> None:
    assert lines_of(whole[0]) == []


def test_a_damaged_member_is_named(copy: Callable[[], Path]) -> None:
    out = copy()
    index = parse_index((out / "v00/shard-000001.parquet").read_bytes())
    for member in (index.members[3], index.members[4]):
        flip(out / "v00/shard-000001.tar", 8 * (member.offset + member.bytes // 2))
    assert lines_of(out) == [
        f"v00/shard-000001.tar: {member.sid}.{member.member}: CRC32 mismatch"
        for member in (index.members[3], index.members[4])
    ]


def test_random_bit_flips_in_any_file_are_lines_and_clear_errors(copy: Callable[[], Path]) -> None:
    """Each flip is found by verify; the reader meets it as an error of ours or does not read that byte."""
    out, random = copy(), Random(7)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) == 17
    for number in range(102):
        path = files[number % len(files)]
        bit = random.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert lines_of(out), f"bit {bit} of {path.name}"
        try:
            cache = Cache.open(out)
            for view in range(2):
                for index in range(cache.num_samples):
                    cache.read(view, index)
        except GkdError as error:
            assert "gkd-scale verify" in str(error) or "format" in str(error)
        flip(path, bit)
    assert lines_of(out) == []


def test_truncation_at_every_member_boundary_is_found(copy: Callable[[], Path]) -> None:
    out = copy()
    tar = out / "v01/shard-000000.tar"
    index = parse_index(tar.with_suffix(".parquet").read_bytes())
    data = tar.read_bytes()
    for number, member in enumerate(index.members):
        tar.write_bytes(data[: member.offset - 512])
        lines = lines_of(out)
        assert lines[0].startswith(f"v01/shard-000000.tar: {member.offset - 512} bytes, not {len(data)}")
        assert len(lines) == 1 + len(index.members) - number
        assert f"{member.sid}.{member.member}: missing or cut short" in lines[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v00/shard-000002.tar", "v00/shard-000002.tar: missing"),
        ("v00/shard-000002.parquet", "v00/shard-000002.parquet: missing"),
        ("plan.parquet", "plan.parquet: missing"),
        ("manifest.parquet", "manifest.parquet: missing"),
        ("manifest.sha256", "manifest.parquet: does not match manifest.sha256"),
        ("manifest.sha256", "shards.parquet: does not match manifest.sha256"),
        ("shards.parquet", "shards.parquet: missing"),
        ("cache.json", "cache.json: missing"),
    ],
)
def test_a_missing_file_is_a_line(copy: Callable[[], Path], name: str, expected: str) -> None:
    out = copy()
    (out / name).unlink()
    assert any(line.startswith(expected) for line in lines_of(out))


def test_a_shard_put_in_the_place_of_another_is_found(copy: Callable[[], Path]) -> None:
    out = copy()
    for suffix in (".tar", ".parquet"):
        (out / f"v00/shard-000001{suffix}").write_bytes((out / f"v01/shard-000001{suffix}").read_bytes())
    assert any("belongs to view 1 shard 1" in line for line in lines_of(out))


def test_files_cut_to_nothing_and_rubbish_are_lines(copy: Callable[[], Path]) -> None:
    out = copy()
    for content in (b"", b"PAR1", bytes(200), b"{}\n"):
        for path in sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size):
            whole = path.read_bytes()
            path.write_bytes(content)
            assert lines_of(out), (path, content)
            path.write_bytes(whole)


def test_what_is_no_cache_is_the_users_mistake(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CacheError, match="is not a teacher cache"):
            verify(path, print, quiet=True)


def test_deleting_what_verify_names_and_building_again_mends(
    whole: Whole, images: Path, copy: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy()
    flip(out / "v01/shard-000001.tar", 8 * 700)
    assert verify(out, print) == 1
    assert "is damaged: 1 lines above, 6 shards" in capsys.readouterr().out
    (out / "v01/shard-000001.tar").unlink()
    build(config(images, out), TinyTeacher(), quiet=True)
    assert verify(out, print) == 0
    assert "is whole: 6 shards" in capsys.readouterr().out
    assert tree(out) == tree(whole[0])
