"""Seeds depend on every part of their name, and on nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.randomness import generator, seed_of

KEYS = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


@given(KEYS, KEYS)
def test_equal_names_equal_seeds_other_names_other_seeds(one: list[str | int], two: list[str | int]) -> None:
    assert (seed_of(*one) == seed_of(*two)) == (one == two)
    assert 0 <= seed_of(*one) < 2**63


def test_streams_never_change() -> None:
    """A change here changes every cache and every run: it must be deliberate."""
    assert seed_of("mask", 0, 1, "00ff") == 8526016474031274115
    assert generator("mask", 0, 1, "00ff").integers(0, 1000, 4).tolist() == [712, 952, 339, 729]
