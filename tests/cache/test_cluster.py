"""Building on several devices: threads of one process, and a simulated Ray cluster whose workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.progress import BuildReport
from gkd_scale.errors import CacheError, ConfigError
from tests.conftest import ROOT

from .support import TinyTeacher, config, tree

Whole = tuple[Path, BuildReport]


# ------------------------------------------------------------------- several devices, one process


def test_two_devices_make_the_same_bytes(whole: Whole, images: Path, tmp_path: Path) -> None:
    made: dict[str, TinyTeacher] = {}

    def load(device: str) -> TinyTeacher:
        return made.setdefault(device, TinyTeacher())

    asked = config(images, tmp_path, device="cuda:0,1,3")
    assert asked.devices == ["cuda:0", "cuda:1", "cuda:3"]
    report = build(asked, TinyTeacher(), load=load, quiet=True)
    assert set(made) == {"cuda:1", "cuda:3"} and all(teacher.calls >= 2 for teacher in made.values())
    assert (report.shards_built, report.samples_built) == (6, 20)
    assert tree(tmp_path) == tree(whole[0])


def test_one_failing_device_stops_all_and_the_build_goes_on(
    whole: Whole, images: Path, tmp_path: Path
) -> None:
    def load(_: str) -> TinyTeacher:
        return TinyTeacher(fail_at=1)

    with pytest.raises(RuntimeError, match="the teacher broke"):
        build(config(images, tmp_path, device="cuda:0,1"), TinyTeacher(), load=load, quiet=True)
    assert not list(tmp_path.rglob("*.part"))
    build(config(images, tmp_path), TinyTeacher(), quiet=True)
    assert tree(tmp_path) == tree(whole[0])


# --------------------------------------------------------------------------------- a Ray cluster


class Mortal(TinyTeacher):
    """Kills its process, once for each file in ``deaths``; slow enough that all workers get a shard."""

    def __init__(self, deaths: Path) -> None:
        super().__init__()
        self._deaths = deaths

    def __call__(self, pixels: Any) -> Any:
        time.sleep(0.1)
        for death in sorted(self._deaths.iterdir()):
            try:
                death.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pixels)


def mortal(deaths: Path, device: str) -> Mortal:
    assert device == "cpu"
    with open(deaths.parent / "workers", "a") as log:
        log.write(f"{os.getpid()}\n")
    return Mortal(deaths)


def broken(_: str) -> TinyTeacher:
    return TinyTeacher(gain=1e6)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "object_store_memory": 80_000_000}
    found = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    found.add_node(**nodes)
    yield found
    found.shutdown()


def on_ray(cluster: Any, images: Path, out: Path) -> CacheTeacherConfig:
    return config(images, out, ray=cluster.address)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_nodes_and_five_killed_workers_make_the_same_bytes(
    cluster: Any, whole: Whole, images: Path, tmp_path: Path
) -> None:
    out, deaths = tmp_path / "cache", tmp_path / "deaths"
    deaths.mkdir()
    for number in range(5):
        (deaths / str(number)).touch()
    load = partial(mortal, deaths)
    report = build(on_ray(cluster, images, out), TinyTeacher(), load=load, quiet=True)
    assert not list(deaths.iterdir()), "five workers died"
    assert len((tmp_path / "workers").read_text().split()) == 7
    assert (report.shards_built, report.samples_built) == (6, 20)
    assert tree(out) == tree(whole[0])
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_in_a_worker_is_the_error_of_the_command(cluster: Any, images: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r" \(sid [0-9a-f]{16}\).*beyond fp16"):
        build(on_ray(cluster, images, tmp_path), TinyTeacher(), load=broken, quiet=True)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_joins_helps(
    cluster: Any, whole: Whole, images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gkd_scale.cache.cluster.LOOK_EVERY", 0.2)
    out, deaths = tmp_path / "cache", tmp_path / "deaths"
    deaths.mkdir()
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    build(on_ray(cluster, images, out), TinyTeacher(), load=partial(mortal, deaths), quiet=True)
    assert len((tmp_path / "workers").read_text().split()) == 3
    assert tree(out) == tree(whole[0])
    cluster.remove_node(node)


class Slow(TinyTeacher):
    """Half a second a batch, so that there is a middle of the run to be killed in."""

    def __call__(self, pixels: Any) -> Any:
        time.sleep(0.5)
        return super().__call__(pixels)


def slow(log: Path, device: str) -> Slow:
    assert device == "cpu"
    import ray

    with open(log, "a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\n")
    return Slow()


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from gkd_scale.cache.build import build
from tests.cache.support import TinyTeacher, config
from tests.cache.test_cluster import slow
images, out, log, address = sys.argv[1:]
build(config(Path(images), Path(out), ray=address), TinyTeacher(), load=partial(slow, Path(log)), quiet=True)
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_driver_started_again_goes_on(
    cluster: Any, whole: Whole, images: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "cache", tmp_path / "log"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(images), str(out), str(log), cluster.address], cwd=ROOT
    )
    wait_until(lambda: len(list(out.glob("v*/*.parquet"))) >= 2 or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL and not (out / "manifest.parquet").exists()
    there = len(list(out.glob("v*/*.parquet")))
    report = build(on_ray(cluster, images, out), TinyTeacher(), load=partial(slow, log), quiet=True)
    assert 1 <= report.shards_built <= 6 - there
    assert tree(out) == tree(whole[0])


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_is_lost_costs_its_shard_only(
    cluster: Any, whole: Whole, images: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "cache", tmp_path / "log"
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    def lose() -> None:
        wait_until(lambda: log.exists() and node.node_id in log.read_text())
        wait_until(lambda: list(out.glob("v*/*.parquet")))
        cluster.remove_node(node, allow_graceful=False)

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lose)
        report = build(on_ray(cluster, images, out), TinyTeacher(), load=partial(slow, log), quiet=True)
        lost.result()
    assert len(log.read_text().split()) == 3, "three nodes took part"
    assert report.shards_built == 6
    assert tree(out) == tree(whole[0])
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_cluster_is_the_users_mistake(images: Path, tmp_path: Path) -> None:
    asked = config(images, tmp_path, ray="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster at .127\.0\.0\.1:1"):
        build(asked, TinyTeacher(), load=broken, quiet=True)
