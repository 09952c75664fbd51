"""Ends a run in which a rank is late: the others would wait for it in a collective, without a word.

A thread of each rank knows in which micro batch its rank is, and since when. After the limit it writes that
to the store through which the ranks found each other. They began together, so all do so at about one time.
One of them prints who is late, or each does if rank 0, which serves the store, does not answer. All write
PyTorch's flight recorder, and all end with status 1. Waiting in a collective blocks the main thread, and NCCL
ends the process by a signal: so it is a thread that prints and ends it. Until then nothing is sent.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from gkd_scale import console, files
from gkd_scale.engine.runtime import WAIT, Runtime, set_timeouts
from gkd_scale.engine.world import in_words
from gkd_scale.errors import GkdError

READING = "reading data"
COMPUTING = "computing"
GRACE = 10.0
"""Seconds, at most, in which the ranks hear of each other."""
RECORDER = "flight-recorder"
"""Folder of the flight recorder's dumps in a run's folder: ``rank_N`` of rank N, for ``torchfrtrace``."""


class Watchdog:
    """Watches this rank's steps inside a ``with`` block; ``out`` gets the flight recorder's dumps.

    There, collectives also give up a minute after the limit of ``minutes``: outside of steps, as in
    validation, nothing else ends them.
    """

    def __init__(self, runtime: Runtime, minutes: float, out: Path) -> None:
        self._runtime, self._minutes, self._out = runtime, minutes, out
        self._grace = min(GRACE, minutes * 60 / 3)
        self._now: tuple[int, str, float] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, step: int, phase: str) -> None:
        """This rank now does ``phase`` in step number ``step``: :data:`READING` begins a micro batch, which
        :data:`COMPUTING` ends.
        """
        began = self._now[2] if self._now and phase == COMPUTING else time.monotonic()
        self._now = step, phase, began

    def rest(self) -> None:
        """Stop watching until the next call of :meth:`at`."""
        self._now = None

    def __enter__(self) -> Watchdog:
        if self._runtime.world > 1:
            self._runtime.barrier()
            set_timeouts(datetime.timedelta(minutes=self._minutes + 1))
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            set_timeouts(WAIT)

    def _watch(self) -> None:
        while not self._over.wait(self._grace / 10):
            now = self._now
            if now is not None and time.monotonic() - now[2] > self._minutes * 60:
                self._say(*now[:2])
                _dump(self._out / RECORDER / f"rank_{self._runtime.rank}")
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(GkdError.exit_code)

    def _say(self, step: int, phase: str) -> None:
        """Tell the others where this rank is. If rank 0, which serves the store, does not answer, say so."""
        delivery = threading.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # of the store
                self._tell(step, phase)
                delivery.set()

        threading.Thread(target=tell, daemon=True).start()  # the store may hold it for hours
        if not delivery.wait(3 * self._grace):
            text = f"rank 0 does not answer; rank {self._runtime.rank} is {phase} in step {step}"
            console.report(_no_step(self._minutes, text))

    def _tell(self, step: int, phase: str) -> None:
        """Say where this rank is; wait for what the others say, and print it if this rank was the first."""
        store = c10d.PrefixStore("gkd-scale/watchdog", dist.distributed_c10d._get_default_store().clone())
        store.set(str(self._runtime.rank), f"{step} {phase}")
        first = store.add("said", 1) == 1
        time.sleep(self._grace)
        if first:
            places = {}
            for rank in range(self._runtime.world):
                if store.check([str(rank)]):
                    number, _, what = store.get(str(rank)).decode().partition(" ")
                    places[rank] = int(number), what
            console.report(_error(places, self._runtime.world, self._minutes))
        else:
            time.sleep(self._grace)  # a launcher ends all ranks once one has ended


def _error(places: dict[int, tuple[int, str]], world: int, minutes: float) -> GkdError:
    """The error that names the late ranks. ``places``: the step of each rank that answers, what it does."""
    missing = [rank for rank in range(world) if rank not in places]
    first, last = (pick(places.values(), key=_order) for pick in (min, max))
    late = sorted(rank for rank, place in places.items() if place == first)
    if missing:
        text = f"{in_words(missing)} {'do' if len(missing) > 1 else 'does'} not answer; the others are"
    elif first == last:
        text = "one rank hangs, or the network; all are"
    else:
        ranks = f"{in_words(late)} {'are' if len(late) > 1 else 'is'} late"
        text = f"{ranks}, {first[1]} for step {first[0]}; the others are"
    return _no_step(minutes, f"{text} {last[1]} in step {last[0]}")


def _no_step(minutes: float, text: str) -> GkdError:
    return GkdError(
        f"no step for {minutes:g} minutes: {text}",
        "look at that machine, its disk and the network; the same command goes on from the last checkpoint "
        f"(OUT/{RECORDER} has the last collectives; --timeout-minutes N waits longer)",
    )


def _order(place: tuple[int, str]) -> tuple[int, bool]:
    """A rank that reads for a step comes before one that computes it."""
    return place[0], place[1] == COMPUTING


def _dump(path: Path) -> None:
    """Write PyTorch's record of the last collectives, if it keeps one."""
    dump = getattr(c10d, "_dump_nccl_trace" if torch.cuda.is_available() else "_dump_fr_trace", None)
    if dump is None:
        return
    try:
        files.write_bytes(path, dump())
    except (OSError, RuntimeError) as error:
        console.err.print(f"the flight recorder could not be written to {path}: {error}", markup=False)
