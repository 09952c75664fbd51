"""``cache-teacher --ray`` on a Ray cluster of two real hosts, which share the folder of the cache."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gkd_scale.cache.build import build
from tests.cache.support import TinyTeacher, config, tree, write_images
from tests.conftest import BIN, cache_flags

from .network import Host

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]
PORT = 6379
NODE = ["--num-cpus", 1, "--object-store-memory", 80_000_000]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_USAGE_STATS_ENABLED": 0}

BOTH = """
import sys
from functools import partial
from pathlib import Path
from gkd_scale.cache.build import build
from tests.cache.support import TinyTeacher, config
from tests.cache.test_cluster import slow
images, out, log, address = sys.argv[1:]
load = partial(slow, Path(log), 2)
build(config(Path(images), Path(out), ray=address), TinyTeacher(), load=load, quiet=True)
"""
"""Builds a cache with workers that write their node to a log, and wait until there are two."""


def start_ray(hosts: tuple[Host, Host], cwd: Path) -> str:
    """A head on the first host, which the second joins; its address."""
    address = f"{hosts[0].name}:{PORT}"
    roles = (["--head", "--port", PORT, "--include-dashboard", "false"], ["--address", address])
    for host, role in zip(hosts, roles, strict=True):
        command = [BIN / "ray", "start", *role, "--node-ip-address", host.address, *NODE]
        result = host.run(command, cwd, **TOKEN)
        assert result.code == 0, result.text
    return address


def test_two_hosts_build_the_bytes_of_one(
    hosts: tuple[Host, Host], tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    images, log = tmp_path / "images", tmp_path / "log"
    write_images(images, 20)
    build(config(images, tmp_path / "alone"), TinyTeacher(), quiet=True)
    address = start_ray(hosts, tmp_path)
    both = [sys.executable, "-c", BOTH, images, tmp_path / "both", log, address]
    command = [BIN / "gkd-scale", "cache-teacher", "--ray", address]
    command += cache_flags(tiny_cache.parent / "images", tiny_teacher, tmp_path / "command")
    for build_on_ray in (both, command):
        result = hosts[0].run(build_on_ray, tmp_path, **TOKEN)
        assert result.code == 0, result.text
    assert len(set(log.read_text().split())) == 2, "a worker on each node"
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")
    assert tree(tmp_path / "command") == tree(tiny_cache)
