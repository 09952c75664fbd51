"""Stage 1 on two hosts under each launcher: the same bytes as two ranks on one host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import BIN

from .network import SECONDS, Host
from .stage1 import SAVE_EVERY, SCRIPT, STEPS, assert_same, flags, losses

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]
PORT = 29500


def with_hostfile(hosts: Sequence[Host], cwd: Path) -> list[object]:
    """A launch by DeepSpeed over ssh, which takes no variables along but those of ``.deepspeed_env``."""
    (cwd / "hostfile").write_text("".join(f"{host.name} slots=1\n" for host in hosts))
    (cwd / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    return [BIN / "deepspeed", "--hostfile", cwd / "hostfile", SCRIPT]


def wait_for_steps(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return when ``count`` steps are in the run's log; ``process`` has to live until then."""
    ends = time.monotonic() + SECONDS
    while len(losses(out)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends, f"{out} has not come to step {count}"
        time.sleep(0.01)


def test_torchrun_with_c10d(
    hosts: tuple[Host, Host], tiny_cache: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].name}:{PORT}", "--rdzv-id", "tiny"]
    launch = [BIN / "torchrun", "--nnodes", 2, "--nproc-per-node", 1, *meet, SCRIPT, *flags(tiny_cache, out)]
    agents = [host.start(launch, tmp_path) for host in hosts]
    outputs = [agent.communicate(timeout=SECONDS)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert_same(out, reference)


def srun(hosts: Sequence[Host], command: Sequence[object], cwd: Path) -> list[subprocess.Popen[str]]:
    """A task on each host, with the variables of Slurm and what our batch script exports."""
    step = {"SLURM_JOB_ID": 4711, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_NTASKS": 2}
    step |= {"SLURM_NODELIST": "gkd-[a-b]", "MASTER_ADDR": hosts[0].name}
    return [
        host.start(command, cwd, **step, SLURM_PROCID=rank, SLURM_NODEID=rank, SLURM_LOCALID=0)
        for rank, host in enumerate(hosts)
    ]


@pytest.mark.parametrize("hosts", ["127.0.1.1"], indirect=True)
def test_the_variables_of_slurm(
    hosts: tuple[Host, Host], tiny_cache: Path, reference: Path, tmp_path: Path
) -> None:
    """Where each host takes its own name for 127.0.1.1, as a plain Debian does."""
    out = tmp_path / "run"
    tasks = srun(hosts, [sys.executable, SCRIPT, *flags(tiny_cache, out)], tmp_path)
    outputs = [task.communicate(timeout=SECONDS)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert_same(out, reference)


def test_hosts_without_a_cable_end(hosts: tuple[Host, Host], tiny_cache: Path, tmp_path: Path) -> None:
    """Both: the one that has rank 0, where the ranks hear of each other, and the one that has not."""
    out, minutes = tmp_path / "run", 0.5
    more = ["--steps", 100_000, "--save-every", 100_000, "--timeout-minutes", minutes]
    tasks = srun(hosts, [sys.executable, SCRIPT, *flags(tiny_cache, out), *more], tmp_path)
    wait_for_steps(out, SAVE_EVERY, tasks[0])
    hosts[0].unplug()
    outputs = [" ".join(task.communicate(timeout=60 * minutes + 120)[0].split()) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1], outputs
    for rank, text in enumerate(outputs):
        assert f"error: no step for {minutes} minutes: rank {1 - rank} does not answer" in text
        assert "Traceback" not in text


def test_deepspeed_over_ssh_ends_if_a_rank_is_killed_and_goes_on(
    hosts: tuple[Host, Host], tiny_cache: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    launch = [*with_hostfile(hosts, tmp_path), *flags(tiny_cache, out)]
    process = hosts[0].start(launch, tmp_path)
    wait_for_steps(out, 2 * SAVE_EVERY, process)
    assert hosts[1].signal("KILL", "launchers/stage1.py --local_rank")
    output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert f"{hosts[0].name}: error: rank 0 lost the others" in output and "Traceback" not in output, output
    assert not any(host.signal("0", "launchers/stage1.py") for host in hosts), "no rank is left"
    assert 2 * SAVE_EVERY <= len(losses(out)) < STEPS and not (out / "run.json").exists()
    result = hosts[0].run(launch, tmp_path)
    assert result.code == 0, result.text
    assert "gkd-a: going on from step " in result.text
    assert_same(out, reference)
