from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from gkd_scale.cache.shard import ShardWriter, next_header, parse_index, tar_path


def test_the_crc_of_a_sample_covers_its_headers_contents_and_padding(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "spec", 0, 0)
    writer.add("one", {"b": b"two" * 300, "a": b""})
    writer.add("other", {"c": b"c" * 512})
    writer.commit({})
    tar = tar_path(tmp_path, 0, 0)
    data, members = tar.read_bytes(), parse_index(tar.with_suffix(".parquet").read_bytes()).members
    assert [(each.sid, each.member) for each in members] == [("one", "a"), ("one", "b"), ("other", "c")]
    first, second = (zlib_ng.crc32(data[: 4 * 512]), zlib_ng.crc32(data[4 * 512 : 6 * 512]))
    assert [each.sample_crc32 for each in members] == [first, first, second]


@given(st.integers(0, 2**40))
def test_padding_ends_at_a_block(end: int) -> None:
    assert next_header(end) % 512 == 0 and 0 <= next_header(end) - end < 512
