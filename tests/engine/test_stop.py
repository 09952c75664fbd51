"""Requests to stop: signals that wait for the end of a step."""

from __future__ import annotations

import signal
import threading

import pytest

from gkd_scale.engine import stop


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_is_a_request_while_the_block_lasts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop.requests() as request:
        assert not request()
        signal.raise_signal(number)
        assert request()
    assert signal.getsignal(number) is before


def test_sigterm_again_changes_nothing_and_ctrl_c_again_stops_at_once() -> None:
    with stop.requests() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert request()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_leaves_signals_alone() -> None:
    values: list[object] = []

    def look() -> None:
        with stop.requests() as request:
            values.extend([request(), signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert values == [False, before]
