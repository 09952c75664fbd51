"""The network interface of gloo.

Gloo listens at the address of its machine's name. Debian sets that to 127.0.1.1, which no other machine can
reach, so ranks of two machines would wait for each other. They use the interface that leads to the others.
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
    """Publish, before this rank joins, its address on the way to rank 0 at ``host``, unless it is 127.x."""
    address = _local_address(host)
    if address is not None and not _is_loopback(address):
        store.set(_ADDRESS, address)


def require_known(environment: Mapping[str, str]) -> None:
    """ConfigError if the user has chosen an interface that this machine does not have."""
    names = [name.strip() for name in environment.get(VARIABLE, "").split(",") if name.strip()]
    interfaces = [name for _, name in socket.if_nameindex()]
    if unknown := [name for name in names if name not in interfaces]:
        raise ConfigError(
            f"{VARIABLE} is '{environment[VARIABLE]}': this machine has no interface {', '.join(unknown)}",
            f"unset {VARIABLE}, or give one of {', '.join(interfaces)}",
        )


def choose(store: Store) -> str | None:
    """The interface to give gloo after all ranks have joined; None if its own choice is right.

    It is right if the user has chosen one, if this machine's name resolves to an address of a network, or
    if all ranks reach rank 0 without a network.
    """
    if VARIABLE in os.environ or _name_is_reachable() or not store.check([_ADDRESS]):
        return None
    address = _local_address(store.get(_ADDRESS).decode())
    return None if address is None else _interface_of(address)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.")


def _local_address(host: str) -> str | None:
    """The IPv4 address from which this machine reaches ``host``; None if there is no way. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _name_is_reachable() -> bool:
    """Whether gloo, which binds the first local address of the machine's name, listens on a network."""
    try:
        addresses = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in addresses:
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
