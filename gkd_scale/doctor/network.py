"""This machine's name and the port of rank 0."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line


def check(cfg: DoctorConfig) -> Iterator[Line]:
    """A line on the host's name, and one on ``cfg.port``."""
    yield _name()
    yield _port(cfg.port)


def _name() -> Line:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        todo = f"add it to /etc/hosts, or set GLOO_SOCKET_IFNAME: ranks look {name} up"
        return Line("host name", "warn", f"{name} is not known ({error.strerror})", todo)
    return Line("host name", "ok", f"{name} is {address}")


def _port(port: int) -> Line:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            return Line(
                f"port {port}",
                "warn",
                "taken" if in_use else str(error.strerror),
                "give launches with several ranks another: deepspeed --master_port N",
            )
    return Line(f"port {port}", "ok", "free")
