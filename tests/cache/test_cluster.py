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
from gkd_scale.cache.cluster import ShardResult, distribute
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.progress import BuildReport
from gkd_scale.errors import CacheError, ConfigError, ModelError
from tests.conftest import ROOT

from .support import TinyTeacher, config, tree

Whole = tuple[Path, BuildReport]


# ------------------------------------------------------------------- several devices, one process


def test_two_devices_make_the_same_bytes(whole: Whole, images: Path, tmp_path: Path) -> None:
    teachers: dict[str, TinyTeacher] = {}

    def load(device: str) -> TinyTeacher:
        return teachers.setdefault(device, TinyTeacher())

    cfg = config(images, tmp_path, device="cuda:0,1,3")
    assert cfg.devices == ["cuda:0", "cuda:1", "cuda:3"]
    report = build(cfg, TinyTeacher(), load=load, quiet=True)
    assert set(teachers) == {"cuda:1", "cuda:3"} and all(teacher.calls >= 2 for teacher in teachers.values())
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
    """Kills its process, once for each file in ``deaths``; waits until ``crew`` workers have started."""

    def __init__(self, deaths: Path, crew: int) -> None:
        super().__init__()
        self._deaths, self._crew = deaths, crew

    def __call__(self, pixels: Any) -> Any:
        time.sleep(0.1)
        wait_until(lambda: starts(self._deaths.parent / "workers") >= self._crew)
        for death in sorted(self._deaths.iterdir()):
            try:
                death.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pixels)


def starts(log: Path) -> int:
    """Workers that have loaded their teacher."""
    return len(log.read_text().split())


def mortal(deaths: Path, crew: int, device: str) -> Mortal:
    assert device == "cpu"
    with open(deaths.parent / "workers", "a") as log:
        log.write(f"{os.getpid()}\n")
    return Mortal(deaths, crew)


def overflow(_: str) -> TinyTeacher:
    return TinyTeacher(gain=1e6)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 1, "object_store_memory": 80_000_000}
    group = Cluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    group.add_node(**nodes)
    yield group
    group.shutdown()


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
    load = partial(mortal, deaths, 2)
    report = build(on_ray(cluster, images, out), TinyTeacher(), load=load, quiet=True)
    assert not list(deaths.iterdir()), "five workers died"
    assert starts(tmp_path / "workers") in (6, 7), "the last replacement may come after the last shard"
    assert (report.shards_built, report.samples_built) == (6, 20)
    assert tree(out) == tree(whole[0])
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_in_a_worker_is_the_error_of_the_command(cluster: Any, images: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r" \(sid [0-9a-f]{16}\).*beyond fp16"):
        build(on_ray(cluster, images, tmp_path), TinyTeacher(), load=overflow, quiet=True)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_joins_helps(
    cluster: Any, whole: Whole, images: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gkd_scale.cache.cluster.CHECK_EVERY", 0.2)
    out, deaths = tmp_path / "cache", tmp_path / "deaths"
    deaths.mkdir()
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    build(on_ray(cluster, images, out), TinyTeacher(), load=partial(mortal, deaths, 3), quiet=True)
    assert starts(tmp_path / "workers") == 3
    assert tree(out) == tree(whole[0])
    cluster.remove_node(node)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_teacher_over_stored_pixels(cluster: Any, whole: Whole, tmp_path: Path) -> None:
    cfg = CacheTeacherConfig(f"cache:{whole[0]}", tmp_path / "one", batch_size=3)
    build(cfg, TinyTeacher(), quiet=True)
    cfg = CacheTeacherConfig(f"cache:{whole[0]}", tmp_path / "two", batch_size=3, ray=cluster.address)
    build(cfg, TinyTeacher(), load=small, quiet=True)
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def no_weights(_: str) -> TinyTeacher:
    raise ModelError("weights.safetensors does not exist on this node", "copy it there")


def small(_: str) -> TinyTeacher:
    return TinyTeacher()


class Holder:
    """An actor of another job."""


def counter(_teacher: TinyTeacher, device: str) -> Callable[[Any], ShardResult]:
    return lambda task: ShardResult(task, len(device))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_teacher_that_cannot_be_loaded_is_the_error_of_the_command(cluster: Any) -> None:
    with pytest.raises(ModelError, match=r"weights\.safetensors does not exist on this node"):
        distribute([1, 2], counter, no_weights, cluster.address, lambda *_: None)


@pytest.fixture
def limit() -> Iterator[None]:
    """TimeoutError after a minute and a half."""

    def late(*_: object) -> None:
        raise TimeoutError("a shard waits for a GPU that is not free")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(90)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.usefixtures("limit")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gpu_that_another_job_holds_gets_no_shard(cluster: Any) -> None:
    """A node with two GPUs, which the resources of Ray count only; one of them is in use to the end."""
    import ray

    node = cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=80_000_000)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        holder = ray.remote(num_gpus=1)(Holder).remote()
        wait_until(lambda: ray.available_resources().get("GPU") == 1)
        results: dict[int, ShardResult] = {}
        distribute(list(range(1, 7)), counter, small, cluster.address, results.__setitem__)
        assert results == {task: ShardResult(task, len("cuda")) for task in range(1, 7)}
        ray.kill(holder)
    finally:
        ray.shutdown()
        cluster.remove_node(node)


class Slow(TinyTeacher):
    """Half a second a batch, so that there is a middle of the run to be killed in."""

    def __init__(self, log: Path, crew: int) -> None:
        super().__init__()
        self._log, self._crew = log, crew

    def __call__(self, pixels: Any) -> Any:
        time.sleep(0.5)
        wait_until(lambda: starts(self._log) >= self._crew)
        return super().__call__(pixels)


def slow(log: Path, crew: int, device: str) -> Slow:
    assert device == "cpu"
    import ray

    with open(log, "a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\n")
    return Slow(log, crew)


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
load = partial(slow, Path(log), 1)
build(config(Path(images), Path(out), ray=address), TinyTeacher(), load=load, quiet=True)
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
    report = build(on_ray(cluster, images, out), TinyTeacher(), load=partial(slow, log, 1), quiet=True)
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
        future = pool.submit(lose)
        report = build(on_ray(cluster, images, out), TinyTeacher(), load=partial(slow, log, 3), quiet=True)
        future.result()
    assert len(log.read_text().split()) == 3, "three nodes took part"
    assert report.shards_built == 6
    assert tree(out) == tree(whole[0])
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_cluster_is_the_users_mistake(images: Path, tmp_path: Path) -> None:
    cfg = config(images, tmp_path, ray="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"no Ray cluster at .127\.0\.0\.1:1"):
        build(cfg, TinyTeacher(), load=overflow, quiet=True)
