"""A small Python program on a node, over ssh or here, that answers questions line by line.

It is the interpreter that DeepSpeed would start there: the same path as here.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 8
"""ssh's own limit for connecting."""
ANSWER_SECONDS = 30.0
MARK = "gkd-scale-doctor "
"""Before each answer: login scripts may print other lines."""
PROGRAM = (
    f"MARK = {MARK!r}"
    + """
import json, os, socket, sys, time
server = None
for line in sys.stdin:
    ask = json.loads(line)
    what = ask["ask"]
    answer = {}
    try:
        if what == "time":
            answer["time"] = time.time()
        elif what == "facts":
            from importlib import metadata
            answer["python"] = sys.version.split()[0]
            answer["folder"] = os.path.isdir(ask["folder"])
            answer["gpus"] = sum(name.isdigit() for name in (
                each[6:] for each in os.listdir("/dev") if each.startswith("nvidia")))
            versions = answer["versions"] = {}
            for name in ask["packages"]:
                try:
                    versions[name] = metadata.version(name)
                except metadata.PackageNotFoundError:
                    versions[name] = None
        elif what == "listen":
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", ask["port"]))
            server.listen(64)
        elif what == "connect":
            socket.create_connection((ask["host"], ask["port"]), timeout=5).close()
    except OSError as error:
        answer["error"] = error.strerror or str(error)
    print(MARK + json.dumps(answer), flush=True)
"""
)


class Unreachable(Exception):
    """A node does not answer; the message says why."""


class Session:
    """The program on ``host``, without ssh if ``here``; a context manager that ends it."""

    def __init__(self, host: str, *, here: bool) -> None:
        local = [sys.executable, "-c", PROGRAM]
        folder = shlex.quote(os.getcwd())  # noqa: PTH109
        remote = f"cd {folder} 2>/dev/null; exec {shlex.join(local)}"
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "LogLevel=ERROR"]
        try:
            self._process = subprocess.Popen(
                local if here else ["ssh", *options, "--", host, remote],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise Unreachable(f"there is no {Path(str(error.filename)).name} on this machine") from None
        self._rest = b""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program; nothing of it is left."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # a question that was never read
                    stream.close()

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one question; :class:`Unreachable` if none comes."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ask": question, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._end_error() from None
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            text = self._line(deadline).decode(errors="replace").strip()
            if text.startswith(MARK):
                answer: dict[str, Any] = json.loads(text.removeprefix(MARK))
                return answer

    def skew(self, pings: int = 5) -> tuple[float, float]:
        """How far the node's clock is ahead of this one's, and how exact that is; seconds.

        The question with the shortest round trip counts. Its answer was given in the middle of the trip,
        plus or minus half.
        """
        trips = []
        for _ in range(pings):
            start = time.time()
            remote = float(self.ask("time")["time"])
            trip = time.time() - start
            trips.append((trip, remote - start - trip / 2))
        trip, ahead = min(trips)
        return ahead, trip / 2

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise Unreachable("no answer in time")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self._end_error()
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end_error(self) -> Unreachable:
        assert self._process.stderr is not None
        self._process.wait()
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return Unreachable(lines[-1][:200] if lines else f"it ended with {self._process.returncode}")
