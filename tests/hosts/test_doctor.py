"""``gkd-scale doctor`` with a hostfile of two real hosts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import BIN

from .network import Host

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]


def doctor(host: Host, cwd: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status and lines by name, of the checks of nodes on ``host``."""
    command = [BIN / "gkd-scale", "doctor", "--only", "nodes", "--hostfile", "hostfile", "--json"]
    result = host.run(command, cwd)
    return result.code, {line["name"]: line for line in json.loads(result.text)["lines"]}


def test_two_hosts_then_one_without_sshd(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("gkd-a slots=1\ngkd-b slots=1\n")
    code, lines = doctor(hosts[0], tmp_path)
    assert code == 0 and {line["state"] for line in lines.values()} == {"ok"}, lines
    assert lines["gkd-a"]["value"] == "this machine"
    assert lines["gkd-b"]["value"] == "10.77.0.2, by ssh"
    assert abs(float(lines["gkd-b clock"]["data"]["ahead"])) < 1
    assert lines["gkd-a port 29500"]["value"] == "free"
    assert lines["gkd-b to rank 0"]["value"] == "reaches gkd-a:29500"

    assert hosts[1].signal("TERM", "sshd.*listener")
    code, lines = doctor(hosts[0], tmp_path)
    assert code == 1 and lines["gkd-a"]["state"] == "ok"
    assert lines["gkd-b"]["state"] == "fail" and "port 22: Connection refused" in lines["gkd-b"]["value"]
    assert lines["gkd-b"]["todo"].startswith("ssh gkd-b has to work without a password")
    assert "gkd-b to rank 0" not in lines
