from __future__ import annotations

import string
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.cache.shard import padded, tar_header


@given(
    st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=99), st.integers(0, 8**11 - 1)
)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


@pytest.mark.parametrize(("name", "size"), [("a" * 100, 0), ("a", 8**11)])
def test_what_does_not_fit_a_header_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="ustar"):
        tar_header(name, size)


@given(st.integers(0, 2**40))
def test_padding_ends_at_a_block(end: int) -> None:
    assert padded(end) % 512 == 0 and 0 <= padded(end) - end < 512
