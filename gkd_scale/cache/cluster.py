"""``cache-teacher --ray``: the shards of the frozen plan, over the devices of a Ray cluster.

The driver owns the plan and the folder's lock; each device of each node has one actor with a teacher. A
task is one shard, and a shard depends on its images alone: whoever builds it, and however often, its bytes
are the same. If a worker or node dies, the shards that it was building go to the end of the queue. A node
that joins gets actors within seconds. A driver that was killed starts again from the indexes on disk. All
nodes see the images and ``--out`` under the same paths (a shared file system).
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gkd_scale import console
from gkd_scale.errors import ConfigError, GkdError
from gkd_scale.memory import keep_freed
from gkd_scale.types import Teacher

CHECK_EVERY = 5.0
"""Seconds between two checks for nodes that joined or left."""

PATIENCE = 60.0
"""Seconds without a ready device after which a line says so."""

TRIES = 5
"""Dead workers after which a shard, or the start of a worker on a device, counts as the cause."""

Load = Callable[[str], Teacher]
"""A teacher for a device ('cpu' or 'cuda'); runs in the worker."""


class NodeDevice(NamedTuple):
    """A GPU of a node, by its number, or the CPU of one."""

    node: str
    number: int


@dataclass(frozen=True)
class ShardResult:
    """Samples and bytes of a shard that was built."""

    samples: int
    bytes: int


MakeBuilder = Callable[[Teacher, str], Callable[[Any], ShardResult]]
"""A teacher and its device to a function that builds a shard; runs in the worker."""


class ShardWorker:
    """A Ray actor with a teacher, which builds shards. ``make`` is called once, in the actor."""

    def __init__(self, make: MakeBuilder, load: Load, device: str) -> None:
        self._make, self._load, self._device = make, load, device

    def start(self) -> None:
        """Load the teacher. Ray hands on an error of a method as it is, but not one of ``__init__``."""
        import torch

        keep_freed()
        if self._device == "cpu":
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
        self._shard = self._make(self._load(self._device), self._device)

    def shard(self, task: Any) -> ShardResult:
        """Build one shard."""
        return self._shard(task)


def distribute(
    todo: Sequence[Any],
    make: MakeBuilder,
    load: Load,
    address: str,
    on_result: Callable[[Any, ShardResult], None],
) -> None:
    """Build the shards of ``todo`` on the cluster at ``address`` ('auto': the running one, or a new one).

    ``make(teacher, device)`` gives the function that builds a shard. Errors of this project come back as they
    are; GkdError if workers died of one shard ``TRIES`` times.
    """
    with _connection(address) as ray:
        _Pool(ray, ray.put(make), ray.put(load), on_result).run(todo)


class _Pool:
    """The driver's loop over devices, queue and results."""

    def __init__(self, ray: Any, make: Any, load: Any, on_result: Callable[[Any, ShardResult], None]) -> None:
        self._ray, self._make, self._load, self._on_result = ray, make, load, on_result
        self._actors: dict[NodeDevice, Any] = {}
        self._running: dict[Any, tuple[NodeDevice, Any]] = {}
        """Device and shard of each call; None in place of the shard while the device's actor starts."""
        self._deaths: Counter[Any] = Counter()
        self._last_check = -CHECK_EVERY
        self._remind_at = time.monotonic() + PATIENCE

    def run(self, todo: Sequence[Any]) -> None:
        """Build all of ``todo``."""
        queue = deque(todo)
        try:
            while queue or any(task is not None for _, task in self._running.values()):
                self._start_missing()
                busy = {device for device, _ in self._running.values()}
                for device in [device for device in self._actors if device not in busy]:
                    if queue:
                        task = queue.popleft()
                        self._running[self._actors[device].shard.remote(task)] = (device, task)
                if not self._running:
                    time.sleep(0.2)
                    continue
                ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
                for reference in ready:
                    self._collect(reference, queue)
                self._remind()
        finally:
            for actor in self._actors.values():
                self._ray.kill(actor)

    def _remind(self) -> None:
        """Say once if no device is ready after ``PATIENCE`` seconds."""
        if any(task is not None for _, task in self._running.values()):
            self._remind_at = math.inf
        elif time.monotonic() > self._remind_at:
            self._remind_at = math.inf
            console.say(
                f"--ray: none of {len(self._actors)} devices is ready yet; other jobs hold them, or teachers "
                "load. 'ray status' shows what is in use"
            )

    def _collect(self, reference: Any, queue: deque[Any]) -> None:
        """Take one result; the shard of a dead worker goes to the end of the queue."""
        device, task = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(reference)
            if task is not None:
                self._on_result(task, result)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:  # worker, node or object lost
            self._actors.pop(device, None)
            self._last_check = -CHECK_EVERY
            cause = f"{device} at its start" if task is None else f"shard {task}"
            self._deaths[cause] += 1
            if self._deaths[cause] >= TRIES:
                last = " ".join(str(error).split())[:300]
                raise GkdError(
                    f"{cause} took down {TRIES} workers, the last with: {last}",
                    "look at the workers' memory; a smaller --batch-size may help, then run it again",
                ) from None
            if task is not None:
                queue.append(task)

    def _start_missing(self) -> None:
        """Start an actor on each device of each living node, at most every few seconds.

        An actor whose GPU is held by another job waits, and gets no shard until it runs.
        """
        if time.monotonic() - self._last_check < CHECK_EVERY:
            return
        self._last_check = time.monotonic()
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        gpus = any(node["Resources"].get("GPU") for node in alive)
        for node in alive:
            count = int(node["Resources"].get("GPU", 0)) if gpus else int("CPU" in node["Resources"])
            for device in (NodeDevice(node["NodeID"], number) for number in range(count)):
                if device not in self._actors:
                    self._actors[device] = self._start(device, gpus)

    def _start(self, device: NodeDevice, gpu: bool) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        worker = self._ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)(ShardWorker)
        place = NodeAffinitySchedulingStrategy(device.node, soft=False)
        options = {"scheduling_strategy": place, "max_restarts": 0}
        actor = worker.options(**options).remote(self._make, self._load, "cuda" if gpu else "cpu")
        self._running[actor.start.remote()] = (device, None)
        return actor


def refuse_silent(address: str, flag: str = "--ray") -> None:
    """ConfigError if ``address`` is no address, or nobody listens; Ray itself would try for minutes."""
    if address == "auto":  # what Ray then takes
        address = os.environ.get("RAY_ADDRESS", address)
    if address in ("auto", "local"):
        return
    scheme, _, place = address.rpartition("://")
    match = re.fullmatch(r"(\[[^]]+\]|[^:\[\]/?#\s]+)(?::([0-9]{1,5}))?", place)
    port = int(match[2] or 10001) if match else 0
    if match is None or scheme not in ("", "ray") or not (match[2] or scheme) or not 0 < port < 2**16:
        raise ConfigError(
            f"{flag} '{address}' is no address of Ray", "give auto, HOST:PORT or ray://HOST:PORT"
        )
    try:
        socket.create_connection((match[1].strip("[]"), port), timeout=10).close()
    except (OSError, UnicodeError) as error:
        raise _no_cluster(address, flag, getattr(error, "strerror", None) or error) from None


def _no_cluster(address: str, flag: str, reason: object) -> ConfigError:
    """The error, with the first 160 characters of ``reason``."""
    return ConfigError(
        f"there is no Ray cluster at '{address}' ({' '.join(str(reason).split())[:160]})",
        f"start one with: ray start --head, then give {flag} auto on the same machine",
    )


def join(address: str, flag: str, **options: Any) -> None:
    """Connect ``ray`` to the cluster at ``address``; ConfigError if there is none."""
    import ray

    refuse_silent(address, flag)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray's, gRPC's, of other versions: whatever keeps us out
        raise _no_cluster(address, flag, error) from None


@contextmanager
def _connection(address: str) -> Iterator[Any]:
    """The ``ray`` module, connected; disconnected at the end if it was not before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        join(address, "--ray", **options)
    except ConfigError:
        if address != "auto" or "RAY_ADDRESS" in os.environ:
            raise
        ray.init(include_dashboard=False, **options)  # a Ray of this machine alone
    try:
        yield ray
    finally:
        ray.shutdown()
