"""Two hosts on this machine: namespaces for network, names, processes and mounts, a cable, and sshd in each.

Nothing of them has a name outside, and a host ends with the process that built it, however that ends: there
is nothing to clean up. Both see the machine's files; /etc/hosts, /etc/ssh, /run, /dev/shm, /tmp/ray and
~/.ssh are their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, Result, environment

ADDRESSES = {"gkd-a": "10.77.0.1", "gkd-b": "10.77.0.2"}
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "sshd", "pdsh", "pkill")
SECONDS = 600.0
"""A launch ends within this, on a machine that others keep busy too."""
SBIN = "/usr/sbin:/sbin"
"""Where Debian has sshd and ip: not on the PATH of every user."""

BOOT = """
set -e
hostname "$1"
mount --bind "$2/$1.hosts" /etc/hosts
mount --bind "$2/ssh" /etc/ssh
mkdir -p /tmp/ray
for folder in /run /dev/shm /tmp/ray ~/.ssh; do
    [ ! -d "$folder" ] || mount -t tmpfs tmpfs "$folder"
done
mkdir /run/sshd
ip link set lo up
"$(command -v sshd)"
echo up
trap '' CHLD  # what the host's processes leave behind is reaped
exec sleep infinity
"""
"""The first process of a host: its name, and the folder with ``NAME.hosts`` and ``ssh``."""

SSHD = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
UsePAM no
PidFile none
"""
SSH = """
IdentityFile /etc/ssh/user_key
IdentitiesOnly yes
GlobalKnownHostsFile /etc/ssh/known_hosts
StrictHostKeyChecking yes
"""


def missing() -> str | None:
    """Why this machine can have no two hosts; None if it can."""
    if os.geteuid() != 0:
        return "two hosts need root"
    gaps = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:{SBIN}") is None]
    if gaps:
        return f"two hosts need {', '.join(gaps)}: apt-get install iproute2 openssh-server pdsh procps"
    result = subprocess.run(["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "true"], check=False)
    return "two hosts need the right to make namespaces" if result.returncode else None


@dataclass(frozen=True)
class Host:
    """A host by its name; ``holder`` is the process with which it ends."""

    name: str
    address: str
    holder: subprocess.Popen[str]

    def start(self, command: Sequence[object], cwd: Path, **variables: object) -> subprocess.Popen[str]:
        """Start a command there, in an environment like a user's with ``variables``."""
        spaces = f"/proc/{self.holder.pid}/ns"
        enter = ["nsenter", *(f"--{kind}={spaces}/{file}" for kind, file in _SPACES.items())]
        values = {"PYTHONPATH": ROOT, **variables}
        return subprocess.Popen(
            [*enter, "env", "-C", str(cwd), *(str(part) for part in command)],
            env={**_environment(), **{key: str(value) for key, value in values.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, command: Sequence[object], cwd: Path, timeout: float = SECONDS, **variables: object
    ) -> Result:
        """Run a command there; its exit code and output."""
        process = self.start(command, cwd, **variables)
        try:
            text, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return Result(process.returncode, text)

    def signal(self, name: str, pattern: str) -> bool:
        """Send a signal to the host's processes whose command line matches; whether there are any."""
        return self.run(["pkill", f"-{name}", "-f", pattern], Path("/"), 30).code == 0

    def unplug(self) -> None:
        """Take the cable out: connections stay open, and nothing comes any more."""
        result = self.run(["ip", "link", "set", "eth0", "down"], Path("/"), 30)
        assert result.code == 0, result.text

    def off(self) -> None:
        """End the host with all its processes."""
        self.holder.kill()
        self.holder.wait()


_SPACES = {"net": "net", "uts": "uts", "mount": "mnt", "pid": "pid_for_children"}


@contextmanager
def two_hosts(folder: Path, own: str | None = None) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other by name, and by ssh without a password. ``folder`` keeps their keys.

    ``own`` is what each takes its own name for, in place of its address: 127.0.1.1, where Debian sets it up.
    """
    _write_keys(folder / "ssh")
    with ExitStack() as stack:
        hosts = []
        for name, address in ADDRESSES.items():
            table = {**ADDRESSES, "localhost": "127.0.0.1", name: own or address}
            (folder / f"{name}.hosts").write_text("".join(f"{at} {what}\n" for what, at in table.items()))
            host = _boot(name, address, folder)
            stack.callback(host.off)
            hosts.append(host)
        _connect(*hosts)
        yield hosts[0], hosts[1]


def _environment() -> dict[str, str]:
    mine = environment()
    return {**mine, "PATH": f"{mine['PATH']}:{SBIN}"}


def _write_keys(ssh: Path) -> None:
    ssh.mkdir(parents=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / name], check=True)
    public = (ssh / "host_key.pub").read_text()
    (ssh / "known_hosts").write_text(f"{','.join([*ADDRESSES, *ADDRESSES.values()])} {public}")
    shutil.copy(ssh / "user_key.pub", ssh / "authorized_keys")
    (ssh / "sshd_config").write_text(SSHD)
    (ssh / "ssh_config").write_text(SSH)


def _boot(name: str, address: str, folder: Path) -> Host:
    spaces = ["--net", "--uts", "--mount-proc", "--pid", "--fork", "--kill-child"]
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", BOOT, "sh", name, str(folder)],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    host = Host(name, address, holder)
    assert holder.stdout is not None
    with holder.stdout:
        if holder.stdout.readline() != "up\n":
            host.off()
            raise RuntimeError(f"{name} did not start: see its output")
    return host


def _connect(one: Host, other: Host) -> None:
    """A cable between two hosts, with each end's address."""
    ends = f"link add eth0 netns {one.holder.pid} type veth peer name eth0 netns {other.holder.pid}".split()
    subprocess.run(["ip", *ends], env=_environment(), check=True)
    for host in (one, other):
        for command in (f"address add {host.address}/24 dev eth0", "link set eth0 up"):
            result = host.run(["ip", *command.split()], Path("/"), 30)
            assert result.code == 0, result.text
