"""Learning rates at their ends and between."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.engine.schedule import cosine, poly


def test_cosine_goes_from_warmup_over_the_peak_to_the_end() -> None:
    rates = [cosine(s, base=1e-3, steps=100, warmup=10, warmup_lr=1e-6, final=1e-5) for s in range(101)]
    assert rates[0] == 1e-6
    assert max(rates) == rates[10] == 1e-3
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)


def test_poly_ends_at_zero() -> None:
    rates = [poly(s, base=1e-2, steps=50, power=0.9) for s in range(51)]
    assert rates[0] == 1e-2
    assert rates[25] == pytest.approx(1e-2 * 0.5**0.9)
    assert rates[50] == 0


@given(st.integers(1, 500), st.integers(0, 50), st.floats(1e-5, 1))
def test_after_the_warmup_rates_never_rise(steps: int, warmup: int, base: float) -> None:
    for schedule in (cosine, poly):
        rates = [schedule(s, base=base, steps=steps, warmup=warmup) for s in range(warmup, warmup + steps)]
        assert all(after <= before for before, after in pairwise(rates))
        assert all(0 <= rate <= base for rate in rates)
