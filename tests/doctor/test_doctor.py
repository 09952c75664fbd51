"""gkd-scale doctor through its command: states, exit codes, JSON, mistakes; nothing hangs or crashes it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gkd_scale.cli import main
from gkd_scale.doctor import registry
from gkd_scale.doctor.config import GROUPS, DoctorConfig
from gkd_scale.doctor.examine import examine
from gkd_scale.doctor.line import Line
from gkd_scale.doctor.session import Session
from gkd_scale.engine.runtime import free_port
from tests.conftest import environment

Lines = dict[str, dict[str, Any]]


def call(*arguments: object) -> int:
    return main(["doctor", *(str(argument) for argument in arguments)])


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Lines]:
    """The exit status, and the lines of ``--json`` by name."""
    capsys.readouterr()
    code = call("--json", *arguments)
    output = json.loads(capsys.readouterr().out)
    assert set(output) == {*("gkd_scale", "time", "seconds", "host", "platform", "python", "counts", "lines")}
    assert sum(output["counts"].values()) == len(output["lines"])
    assert code == (1 if output["counts"]["fail"] else 0)
    for line in output["lines"]:
        assert set(line) == {"group", "name", "state", "value", "todo", "data"}
        assert line["group"] in GROUPS and line["state"] in ("ok", "warn", "fail") and line["value"]
        assert bool(line["todo"]) == (line["state"] != "ok"), line
    return code, {line["name"]: line for line in output["lines"]}


def test_every_group_says_something_and_no_check_breaks_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(registry.REGISTRY) == GROUPS
    _, lines = report(capsys)
    assert not {group.module for group in registry.REGISTRY.values()} & set(lines), "a check raised"
    assert {line["group"] for line in lines.values()} == set(GROUPS)
    import torch

    assert lines["torch"]["value"] == torch.__version__.partition("+")[0]
    if not torch.cuda.is_available():
        for name in ("gpu", "fp16", "nccl", "p2p"):
            assert (lines[name]["state"], lines[name]["value"]) == ("warn", "no CUDA device")
    assert "cpu_adam" in lines["other ops"]["data"]


def test_the_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--only", "system", "--only", "network") in (0, 1)
    out = capsys.readouterr().out
    assert "/dev/shm" in out and "port 29500" in out and "versions" not in out
    assert out.splitlines()[-1].endswith("fail")


def test_a_low_limit_of_open_files_fails_and_says_how_to_raise_it(tmp_path: Path) -> None:
    code = "import resource, sys; from gkd_scale.cli import main; "
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); "
    code += "sys.exit(main(['doctor', '--only', 'system']))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert "128 (at most 128)" in result.stdout and "ulimit -n 65536" in result.stdout


def test_a_cache_against_what_a_run_needs(
    tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--only", "storage", "--cache", tiny_cache, "--out", tmp_path / "not/yet", "--seconds", 0.3)
    code, lines = report(capsys, *flags)
    assert code == 0 and lines["cache"]["data"]["images_per_s"] > 0
    assert lines["cache"]["data"]["bytes_per_s"] > 0 and lines["writing"]["data"]["bytes_per_s"] > 0
    assert not list(tmp_path.iterdir())
    code, lines = report(capsys, *flags, "--needs", 0.01)
    assert lines["cache"]["state"] == "ok" and lines["cache"]["data"]["needed_images_per_s"] == 0.01
    code, lines = report(capsys, *flags, "--needs", 1e9)
    assert code == 1 and lines["cache"]["state"] == "fail"
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": step, "images_per_s": 0.5, "data_wait": 0.5 * (step > 2)} for step in range(1, 7)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    code, lines = report(capsys, *flags, "--run", run, "--hostfile", tmp_path / "hosts")
    assert lines["cache"]["data"]["needed_images_per_s"] == 0.5, "1 without waiting, of two nodes"


def test_a_damaged_cache_is_a_line(
    tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, cache)
    for tar in cache.rglob("*.tar"):
        tar.write_bytes(b"x" * tar.stat().st_size)
    code, lines = report(capsys, "--only", "storage", "--cache", cache, "--seconds", 0.1)
    assert code == 1 and lines["disk"]["state"] != "fail" and "gkd-scale verify" in lines["storage"]["todo"]


def test_a_hostfile_with_this_machine_and_an_unknown_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "# two nodes\nlocalhost slots=2\n\n127.0.0.1 slots=2  # the same\nno-such-host.invalid slots=8\n"
    )
    port = free_port()
    code, lines = report(capsys, "--only", "nodes", "--hostfile", hosts, "--port", port)
    assert code == 1
    assert lines["hostfile"]["value"] == "3 nodes, 12 ranks"
    for host in ("localhost", "127.0.0.1"):
        assert lines[host]["state"] == "ok" and lines[f"{host} versions"]["state"] == "ok"
        assert abs(lines[f"{host} clock"]["data"]["ahead"]) < 1
    assert lines[f"localhost port {port}"]["value"] == "free"
    assert lines["127.0.0.1 to rank 0"]["value"] == f"reaches localhost:{port}"
    assert lines["no-such-host.invalid"]["state"] == "fail"
    assert "not known" in lines["no-such-host.invalid"]["value"]
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        _, lines = report(capsys, "--only", "nodes", "--hostfile", hosts, "--port", port)
        assert lines[f"localhost port {port}"]["state"] == "fail"
        _, lines = report(capsys, "--only", "network", "--port", port)
        assert (lines[f"port {port}"]["state"], lines[f"port {port}"]["value"]) == ("warn", "taken")


FAKE_SSH = """\
#!{python}
import shlex, subprocess, sys, time
host, command = sys.argv[-2:]
print("welcome to", host)
if host == "silent":
    time.sleep(60)
if host == "locked":
    sys.exit("Permission denied (publickey).")
words = shlex.split(command[command.index("exec ") + 5:])
words[2] = words[2].replace("time.time()", "time.time() + 120")
words[2] = words[2].replace("metadata.version(name)", "metadata.version(name) + '.x'")
words[2] = words[2].replace('answer["gpus"] = ', 'answer["gpus"] = 4 + ')
sys.exit(subprocess.run(words).returncode)
"""


def test_other_nodes_over_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for ssh: a node whose clock, versions and GPUs differ, one without a key, a silent one."""
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(FAKE_SSH.format(python=sys.executable))
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    monkeypatch.setattr("gkd_scale.doctor.nodes._address", lambda host: (f"address-of-{host}", ""))
    monkeypatch.setattr("gkd_scale.doctor.nodes._is_here", lambda _: False)
    monkeypatch.setattr("gkd_scale.doctor.session.ANSWER_SECONDS", 5.0)
    hosts = tmp_path / "hosts"
    hosts.write_text("late slots=8\nlocked slots=4\nsilent slots=4\n")
    began = time.monotonic()
    code, lines = report(capsys, "--only", "nodes", "--hostfile", hosts, "--port", free_port())
    assert code == 1 and time.monotonic() - began < 60
    assert lines["late"]["state"] == "ok"
    assert lines["late clock"]["state"] == "fail" and 119 < lines["late clock"]["data"]["ahead"] < 121
    assert ".x there" in lines["late versions"]["value"]
    assert lines["late slots"]["value"] == "8 slots, 4 GPUs" and "slots=4" in lines["late slots"]["todo"]
    assert "Permission denied" in lines["locked"]["value"]
    assert "no answer in time" in lines["silent"]["value"]


def test_a_session_leaves_no_process() -> None:
    with Session("here", here=True) as session:
        ahead, exact = session.skew()
        assert abs(ahead) < 1 and 0 <= exact < 5
    assert session._process.returncode is not None


def test_a_check_that_raises_or_hangs_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: DoctorConfig) -> Iterator[Line]:
        yield Line("first", "ok", "there")
        raise ZeroDivisionError("by zero")

    def hang(_: DoctorConfig) -> Iterator[Line]:
        yield Line("first", "ok", "there")
        time.sleep(30)

    for check, message in ((fail, "ZeroDivisionError: by zero"), (hang, "did not end within")):
        monkeypatch.setattr("gkd_scale.doctor.system.check", check)
        first, last = examine(registry.Group("system", lambda _: 0.5), DoctorConfig())
        assert first.name == "first" and last.state == "fail" and message in last.value and last.todo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node-1 slots=8\nnode-2\n", "line 2: 'node-2' is not 'host slots=N'"),
        ("node-1 slots=0\n", "line 1"),
        ("node-1 slots=8\nnode-1 slots=8\n", "line 2: node-1 is there twice"),
        ("-oProxyCommand=x slots=8\n", "no name of a host"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_malformed_hostfile(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text(text)
    assert call("--hostfile", tmp_path / "hosts") == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "hosts") in error and error.count("error:") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hostfile", "nowhere"), "the hostfile nowhere cannot be read"),
        (("--cache", "nowhere"), "nowhere"),
        (("--run", "nowhere"), "there is no nowhere/metrics.jsonl"),
        (("--run", "nowhere", "--needs", "5"), "both --run and --needs"),
        (("--only", "systems"), "did you mean 'system'"),
        (("--port", "70000"), "port"),
        (("--needs", "0"), "needs"),
    ],
)
def test_mistakes_end_with_2(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert message in capsys.readouterr().err


BUG = """
import sys
from gkd_scale import cli
def broken(cfg):
    raise ValueError("not our day")
cli.COMMANDS["demo"] = cli.COMMANDS["demo"]._replace(main="__main__:broken")
sys.exit(cli.main(["demo"]))
"""
LAUNCH = """
import sys
from dataclasses import dataclass
from pathlib import Path
from gkd_scale.engine import launch
@dataclass
class Nothing:
    pass
def run(cfg, runtime, bundled):
    raise ValueError("not our day")
launch.leave(launch.main(Nothing, run, argv=[], launchers=Path(), prog="", description="", examples=""))
"""


@pytest.mark.parametrize("program", [BUG, LAUNCH])
def test_the_traceback_of_a_bug_ends_with_how_to_report_it(program: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 1 and "ValueError: not our day" in result.stderr
    assert "gkd-scale doctor --json" in result.stderr.splitlines()[-1]


def test_a_users_mistake_is_no_bug(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gkd_scale.cli", "doctor", "--hostfile", "nowhere"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "please report" not in result.stderr


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from gkd_scale.cli import main; main(['--help']); "
    code += "print(sorted({'torch', 'deepspeed', 'wandb', 'mlflow', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert "doctor" in result.stdout and result.stdout.splitlines()[-1] == "[]"
