"""The network interface of gloo.

Gloo listens at the address of its machine's own name. Debian makes that 127.0.1.1, where no other machine
comes in: ranks of two machines would wait for each other. They listen on the way to each other instead.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gkd_scale.errors import ConfigError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

VARIABLE = "GLOO_SOCKET_IFNAME"
_ADDRESS = "gkd-scale/address"
_GET_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux: the IPv4 address of an interface."""


def offer(store: Store, host: str) -> None:
    """Before this rank joins: tell the others its address on the way to rank 0 at ``host``, but not 127.x."""
    address = _own_address_towards(host)
    if address is not None and not _is_loopback(address):
        store.set(_ADDRESS, address)


def require_known(environment: Mapping[str, str]) -> None:
    """ConfigError if the user has chosen an interface that this machine does not have."""
    chosen = [name.strip() for name in environment.get(VARIABLE, "").split(",") if name.strip()]
    known = [name for _, name in socket.if_nameindex()]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(
            f"{VARIABLE} is '{environment[VARIABLE]}': this machine has no interface {', '.join(unknown)}",
            f"unset {VARIABLE}, or give one of {', '.join(known)}",
        )


def choose(store: Store) -> str | None:
    """After all have joined: the interface that gloo has to be told; None if its own choice is right.

    It is right if the user has chosen, if this machine's name means an address of a network, or if all
    ranks reach rank 0 without one.
    """
    if VARIABLE in os.environ or _name_is_reachable() or not store.check([_ADDRESS]):
        return None
    address = _own_address_towards(store.get(_ADDRESS).decode())
    return None if address is None else _interface_of(address)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.")


def _own_address_towards(host: str) -> str | None:
    """The IPv4 address from which this machine reaches ``host``; None if there is no way. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _name_is_reachable() -> bool:
    """Whether gloo listens on a network: at the first address of the machine's name that is its own."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return not _is_loopback(str(address[0])) and address[0] != "::1"
    return False


def _interface_of(address: str) -> str | None:
    """The name of the interface with an IPv4 address; None if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
