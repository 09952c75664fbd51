"""Gloo's interface on a machine whose own name is a loopback address; real ones are in ``tests/hosts``."""

from __future__ import annotations

import socket

import pytest
from torch._C._distributed_c10d import HashStore

from gkd_scale.engine import interface


@pytest.fixture(autouse=True)
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's name means 127.0.0.1, and the user has chosen no interface."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.delenv(interface.VARIABLE, raising=False)


def elsewhere() -> HashStore:
    """The store after a rank came from another machine: here the only address that every machine can use."""
    store = HashStore()
    store.set("gkd-scale/address", "127.0.0.1")
    return store


def test_ranks_of_one_machine_leave_the_choice_to_gloo() -> None:
    store = HashStore()
    for host in ("127.0.0.1", "localhost", "127.0.1.1"):
        interface.offer(store, host)
    assert interface.choose(store) is None


def test_a_rank_elsewhere_decides_the_interface() -> None:
    assert interface.choose(elsewhere()) == "lo"


def test_the_users_choice_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interface.VARIABLE, "eth7")
    assert interface.choose(elsewhere()) is None


def test_a_name_that_is_unknown_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert interface.choose(elsewhere()) == "lo"
    store = HashStore()
    interface.offer(store, "no-such-host.invalid")
    assert interface.choose(store) is None
