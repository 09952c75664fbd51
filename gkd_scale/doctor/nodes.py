"""The nodes of a hostfile: names, ssh, clocks, versions, folders, GPUs, and the way to rank 0's port."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.hostfile import read_hostfile
from gkd_scale.doctor.line import Line, State
from gkd_scale.doctor.session import Session, Unreachable
from gkd_scale.doctor.versions import PACKAGE, requirements, version_of

SKEW_WARN, SKEW_FAIL = 1.0, 60.0
"""Seconds between clocks: logs and file times of nodes no longer fit together; certificates are refused."""
NODE_SECONDS = 60.0


def check(cfg: DoctorConfig) -> Iterator[Line]:
    """Lines for the hostfile, then for each node; nothing to check without ``cfg.hostfile``."""
    if cfg.hostfile is None:
        yield Line("hostfile", "ok", "not checked: give --hostfile FILE")
        return
    hosts = read_hostfile(cfg.hostfile)
    yield Line("hostfile", "ok", f"{len(hosts)} nodes, {sum(hosts.values())} ranks")
    yield _pdsh(len(hosts))
    first = next(iter(hosts))
    nodes = [_Node(host, slots, first, cfg.port) for host, slots in hosts.items()]
    try:
        for step in (_Node.look, _Node.listen, _Node.connect):
            _together([partial(node.do, step) for node in nodes])
        for node in nodes:
            yield from node.lines()
    finally:
        for node in nodes:
            node.close()


def _pdsh(nodes: int) -> Line:
    if nodes == 1 or shutil.which("pdsh"):
        return Line("pdsh", "ok", "there" if shutil.which("pdsh") else "not needed for one node")
    return Line(
        "pdsh",
        "fail",
        "not on PATH",
        "install pdsh: deepspeed --hostfile starts nodes with it; or use torchrun, srun or --no_ssh",
    )


def _together(works: list[Callable[[], None]]) -> None:
    """Run all at once; those that do not end in time are left behind."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NODE_SECONDS)


class _Node:
    """One node of the hostfile, and what was found there."""

    def __init__(self, host: str, slots: int, first: str, port: int) -> None:
        self.host, self.slots, self.first, self.port = host, slots, first, port
        self._lines: list[Line] = []
        self._session: Session | None = None
        self._looked = False

    def lines(self) -> list[Line]:
        """The lines so far, and one that fails if the node has not answered in time."""
        late = Line(
            self.host, "fail", f"no answer within {NODE_SECONDS:.0f} s", "see whether it is up, and its ssh"
        )
        return list(self._lines) if self._looked else [*self._lines, late]

    def close(self) -> None:
        """End the program there."""
        if self._session is not None:
            self._session.close()

    def do(self, step: Callable[[_Node], None]) -> None:
        """Run a step; an exception of it becomes a line that fails."""
        try:
            step(self)
        except Exception as error:
            self._looked = True
            reason = f"{type(error).__name__}: {error}"
            self._say(
                self.host, "fail", reason[:200], "this check could not be made: see what its error says"
            )

    def look(self) -> None:
        """Reach the node and ask what is there."""
        try:
            address, problem = _address(self.host)
            here = address is not None and _is_here(address)
            session = Session(self.host, here=here)
            try:
                facts = session.ask("facts", packages=[PACKAGE, *requirements()], folder=os.getcwd())  # noqa: PTH109
                ahead, exact = session.skew()
            except Unreachable:
                session.close()
                raise
            self._session = session
        except Unreachable as error:
            todo = f"ssh {self.host} has to work without a password: see its name, its ssh and your key"
            reason = f"{problem}; ssh: {error}" if problem else f"ssh: {error}"
            if "No such file" in str(error) or "not found" in str(error):
                reason, todo = f"there is no {sys.executable} there", "install gkd-scale at the same path"
            self._say(self.host, "fail", reason, todo)
        else:
            route = "this machine" if here else f"{address or 'a name of ssh alone'}, by ssh"
            self._say(self.host, "ok", route)
            if problem:
                self._say(f"{self.host} name", "warn", problem, "other nodes have to know it: see /etc/hosts")
            self._clock(ahead, exact)
            self._versions(facts)
            self._slots(int(facts["gpus"]))
            if not facts["folder"]:
                folder = os.getcwd()  # noqa: PTH109
                todo = "DeepSpeed starts there: use a shared file system, or the same checkout on all nodes"
                self._say(f"{self.host} folder", "fail", f"{folder} is not there", todo)
        self._looked = True

    def listen(self) -> None:
        """On the first node: take the port of rank 0."""
        if self._session is None or self.host != self.first:
            return
        todo = "choose another: --port here, --master_port of deepspeed"
        self._ask("listen", f"{self.host} port {self.port}", "free", "", todo, port=self.port)

    def connect(self) -> None:
        """On the other nodes: reach the port of rank 0."""
        if self._session is None or self.host == self.first:
            return
        place = f"{self.first}:{self.port}"
        todo = f"open the firewall between nodes, and check what {self.first} means on {self.host}"
        arguments = {"host": self.first, "port": self.port}
        self._ask("connect", f"{self.host} to rank 0", f"reaches {place}", f"{place}: ", todo, **arguments)

    def _ask(self, question: str, name: str, fine: str, lead: str, todo: str, **arguments: Any) -> None:
        """A line: ``fine``, the node's error after ``lead``, or that the node no longer answers."""
        assert self._session is not None
        try:
            error = self._session.ask(question, **arguments).get("error", "")
        except Unreachable as unreachable:
            self._say(name, "fail", str(unreachable), f"see whether {self.host} is up")
        else:
            self._say(name, "fail" if error else "ok", f"{lead}{error}" if error else fine, todo)

    def _clock(self, ahead: float, exact: float) -> None:
        name, text = f"{self.host} clock", f"{ahead:+.3f} s ± {exact:.3f} s"
        skew, data = abs(ahead) - exact, {"ahead": ahead, "exact": exact}
        state: State = "fail" if skew > SKEW_FAIL else "warn" if skew > SKEW_WARN else "ok"
        self._say(name, state, text, "let both follow one time server: chrony or ntpd", data)

    def _versions(self, facts: dict[str, object]) -> None:
        theirs = facts["versions"]
        assert isinstance(theirs, dict)
        mine = {name: version_of(name) for name in theirs}
        mine["python"], theirs["python"] = sys.version.split()[0], facts["python"]
        diffs = [
            f"{name} {theirs[name]} there, {mine[name]} here" for name in mine if mine[name] != theirs[name]
        ]
        text = "; ".join(diffs) or f"the same {len(mine)} packages"
        todo = "install the same with: pip install -c constraints.txt"
        self._say(f"{self.host} versions", "fail" if diffs else "ok", text, todo)

    def _slots(self, gpus: int) -> None:
        name = f"{self.host} slots"
        if gpus and self.slots > gpus:
            text = f"{self.slots} slots, {gpus} GPUs"
            self._say(name, "fail", text, f"write slots={gpus} in the hostfile")
        else:
            self._say(name, "ok", f"{self.slots} slots, {gpus or 'no'} GPU{'' if gpus == 1 else 's'}")

    def _say(
        self, name: str, state: State, value: str, todo: str = "", data: Mapping[str, float] | None = None
    ) -> None:
        self._lines.append(Line(name, state, value, todo, data or {}))


def _address(host: str) -> tuple[str | None, str]:
    """The address of a host; or None, and why there is none."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]), ""
    except (OSError, UnicodeError) as error:
        return None, f"the name is not known ({getattr(error, 'strerror', None) or error})"


def _is_here(address: str) -> bool:
    """Whether an address is this machine's: only then a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
