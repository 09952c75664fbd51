"""Kind J: what a launcher, a scheduler or a cluster sets, and what it does not."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from unittest import mock

from gkd_scale import console
from gkd_scale.engine.runtime import free_port
from tests.cases import tiny
from tests.cases.case import Bench, Ran, case
from tests.cases.d_two_commands import search
from tests.conftest import ROOT, cache_flags

KIND = "J. Environment and cluster"
_VARIABLES = re.compile("RANK|WORLD_SIZE|LOCAL_.*|MASTER_.*|SLURM_.*|GLOO_.*|RAY_ADDRESS")


def launch(bench: Bench, variables: Mapping[str, object]) -> Ran:
    """``launchers/stage1.py`` in this process with the variables of a launcher; nothing may be written."""
    from gkd_scale.distill import stage1
    from gkd_scale.distill.config import Stage1Config
    from gkd_scale.engine.launch import main

    out = bench.folder / "run"
    argv = [str(each) for each in tiny.stage1(out)]
    launchers = ROOT / "launchers"
    with environment(variables):
        ran = bench.call(
            lambda: main(
                Stage1Config,
                stage1.train,
                argv=argv,
                launchers=launchers,
                prog="",
                description="",
                examples="",
            )
        )
    assert not out.exists()
    return ran


def environment(variables: Mapping[str, object]) -> mock._patch_dict:  # type: ignore[type-arg]
    """This process's environment with these variables of a launcher and no others."""
    rest = {key: value for key, value in os.environ.items() if not _VARIABLES.fullmatch(key)}
    values = {key: str(value) for key, value in variables.items()}
    return mock.patch.dict(os.environ, {**rest, **values}, clear=True)


def masked(ran: Ran) -> str:
    """The outcome without port numbers and seconds."""
    text = re.sub(r"\b(127\.0\.0\.1:|port )\d+", r"\1PORT", str(ran))
    return re.sub(r"after \d+ s", "after N s", text)


PAIR = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}


@case(KIND, "`RANK=3 WORLD_SIZE=2`")
def rank_beyond(bench: Bench) -> object:
    return launch(bench, {"RANK": 3, "WORLD_SIZE": 2})


@case(KIND, "`WORLD_SIZE=0`")
def no_world(bench: Bench) -> object:
    return launch(bench, {"RANK": 0, "WORLD_SIZE": 0})


@case(KIND, "`RANK=a`")
def no_number(bench: Bench) -> object:
    return launch(bench, {**PAIR, "RANK": "a"})


@case(KIND, "RANK and WORLD_SIZE without LOCAL_RANK")
def no_local_rank(bench: Bench) -> object:
    return launch(bench, {"RANK": 1, "WORLD_SIZE": 2})


@case(KIND, "RANK without WORLD_SIZE")
def no_size(bench: Bench) -> object:
    return launch(bench, {"RANK": 0})


@case(KIND, "`MASTER_PORT=http`")
def no_port(bench: Bench) -> object:
    return launch(bench, {**PAIR, "RANK": 0, "MASTER_PORT": "http"})


@case(KIND, "`WORLD_SIZE=1000000000`")
def no_such_world(bench: Bench) -> object:
    return launch(bench, {**PAIR, "RANK": 0, "WORLD_SIZE": 10**9})


@case(KIND, "`GLOO_SOCKET_IFNAME` of another machine")
def no_interface(bench: Bench) -> object:
    ran = str(launch(bench, {**PAIR, "RANK": 0, "GLOO_SOCKET_IFNAME": "nope0"}))
    return re.sub(r"give one of .*", "give one of NAMES", ran)


@case(KIND, "`DS_ACCELERATOR=cuda` on a machine without a GPU")
def no_accelerator(bench: Bench) -> object:
    return launch(bench, {"DS_ACCELERATOR": "cuda"})


@case(KIND, "stdout is closed, full, or of an encoding without arrows (the POSIX locale)")
def odd_stdout(_bench: Bench) -> object:
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    results = [
        shell("gkd-scale students >&-"),
        shell("gkd-scale students", **plain),
        shell("gkd-scale --help > /dev/full"),
    ]
    assert [each.returncode for each in results] == [0, 0, 2], results
    assert "?" in results[1].stdout and not any("Traceback" in each.stderr for each in results)
    return f"ok; ok; exit 2: {' '.join(results[2].stderr.split())}"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of ours in a shell of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=300)


@case(KIND, "a folder's name that is longer than file systems take, as --out")
def long_name(bench: Bench) -> object:
    out = bench.folder / ("x" * 300)
    run = bench.stage1(*tiny.stage1(out))
    cache = bench.cli("cache-teacher", *cache_flags(tiny.images(), tiny.teacher(), out))
    return f"{run}; {cache}".replace("x" * 300, "xxx…")


@case(KIND, "the port of another launch on this machine")
def port_taken(bench: Bench) -> object:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        return masked(launch(bench, {**PAIR, "RANK": 0, "MASTER_PORT": other.getsockname()[1]}))


@case(KIND, "an unknown MASTER_ADDR")
def unknown_address(bench: Bench) -> object:
    with mock.patch("gkd_scale.engine.world.UNKNOWN_NAME_AFTER", 0.1):
        address = {"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": 29511}
        ran = launch(bench, {**PAIR, "RANK": 1, **address})
    return re.sub(r"which is no known machine \([^)]*\)", "which is no known machine (REASON)", str(ran))


@case(KIND, "a rank that never comes")
def missing_rank(bench: Bench) -> object:
    variables = {**PAIR, "RANK": 0, "MASTER_PORT": free_port(), "GKD_SCALE_JOIN_SECONDS": 0.5}
    return masked(launch(bench, variables))


@case(KIND, "rank 0 never comes")
def missing_first(bench: Bench) -> object:
    variables = {**PAIR, "RANK": 1, "MASTER_PORT": free_port(), "GKD_SCALE_JOIN_SECONDS": 0.5}
    return masked(launch(bench, variables))


@case(KIND, "a batch script of 16 tasks that starts the launcher without srun")
def batch_step(_bench: Bench) -> object:
    from gkd_scale.engine.world import place, unused_tasks

    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16"}
    assert (place(batch).rank, place(batch).world, unused_tasks(batch)) == (0, 1, 15)
    step = {**batch, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "5"}
    assert (place(step).rank, place(step).world, unused_tasks(step)) == (5, 16, 0)
    return "ok: a world of one, with a remark on the 15 idle tasks"


@case(KIND, "srun's variables with a rank that is none")
def slurm_rank(bench: Bench) -> object:
    return launch(bench, {"SLURM_PROCID": 2, "SLURM_LOCALID": 0, "SLURM_STEP_NUM_TASKS": 2})


@case(KIND, "`search.py --address ray://127.0.0.1:PORT` where nobody listens")
def no_ray(bench: Bench) -> object:
    with environment({}):
        ran = search(bench, "--address", f"ray://127.0.0.1:{free_port()}")
    assert not (bench.folder / "tune").exists()
    return masked(ran)


@case(KIND, "`search.py --address http://head:8265`")
def no_ray_address(bench: Bench) -> object:
    ran = search(bench, "--address", "http://head:8265")
    assert not (bench.folder / "tune").exists()
    return ran


@case(KIND, "`cache-teacher --ray 127.0.0.1:PORT` where nobody listens")
def no_ray_for_a_cache(bench: Bench) -> object:
    out = bench.folder / "cache"
    flags = cache_flags(tiny.images(), tiny.teacher(), out)
    with environment({}):
        ran = bench.cli("cache-teacher", *flags, "--ray", f"127.0.0.1:{free_port()}")
    assert not out.exists()
    return masked(ran)


@case(KIND, "`search.py --resources cpu=0`, then the mended command")
def nothing_to_run_on(bench: Bench) -> object:
    ran = search(bench, "--resources", "cpu=0,gpu=0")
    assert not (bench.folder / "tune").exists()
    return ran


@case(KIND, "`push --to` a URL without a bucket, and to a place that cannot be written")
def push_nowhere(bench: Bench) -> object:
    (bench.folder / "file").touch()
    refusal = bench.cli("push", tiny.cache(), "--to", "s3://")
    other = str(bench.cli("push", tiny.cache(), "--to", f"file://{bench.folder}/file/x"))
    return f"{refusal}; {re.sub('Error: .* →', 'Error: REASON →', other)}"


@case(KIND, "an empty search.json")
def empty_record(bench: Bench) -> object:
    (bench.folder / "tune").mkdir()
    (bench.folder / "tune/search.json").touch()
    return search(bench)


@case(KIND, "a trials.parquet cut short")
def cut_table(bench: Bench) -> object:
    from gkd_scale.search import results as tables

    (bench.folder / tables.FILE).write_bytes(b"PAR1")

    def command() -> int:
        return console.run(lambda: tables.Results(bench.folder) and None)

    return re.sub(r"damaged: .* →", "damaged: REASON →", str(bench.call(command)))
