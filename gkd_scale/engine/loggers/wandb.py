"""Weights & Biases: a run of the project ``WANDB_PROJECT`` or ``gkd-scale``, its files under ``OUT/wandb``.

``WANDB_MODE`` and wandb's other settings apply. It never prompts for a key: without one, and not offline,
there is an error before the training begins. If the server does not answer, the run stays offline.
"""

from __future__ import annotations

import os
import secrets
import ssl
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gkd_scale.commands import shell
from gkd_scale.engine.loggers import Logger, Row, Status, Tracked
from gkd_scale.errors import ConfigError

PACKAGE = "wandb"
PROJECT = "gkd-scale"
ANSWER = 30.0
"""Seconds that the server has to answer at the start."""
_EXIT = {"finished": 0, "stopped": 255, "failed": 1}
"""wandb shows 255 as killed."""


def require() -> None:
    """ConfigError if wandb would prompt for a key."""
    import wandb

    if _mode() == "offline" or _mode() == "disabled":
        return
    hint = "run wandb login, set WANDB_API_KEY, or keep the run here with WANDB_MODE=offline"
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ConfigError(f"--log wandb: {' '.join(str(error).split())}", hint) from None
    if not has_key:
        raise ConfigError("--log wandb: wandb has no API key", hint)


def _mode() -> str:
    import wandb

    return str(wandb.setup().settings.mode)


def _unreachable(url: str) -> str:
    """Why a server does not answer; the empty string if it answers, also with an error."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER).close()
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        reason = getattr(error, "reason", error)
        # wandb may trust certificates, by its settings, that Python does not.
        return "" if isinstance(reason, ssl.SSLError) else f"{url}: {reason}"
    return ""


def start(run: Tracked, start: int, say: Callable[[str], None]) -> Logger:  # noqa: ARG001
    """The run whose id is stored in ``run.out``, or a new one."""
    import wandb

    before = run.memory("wandb").get("run")
    identity = before or secrets.token_hex(4)
    if before is None:
        run.remember("wandb", run=identity)
    kept = _last_kept(run.out, identity)
    mode = None
    if _mode() == "online" and (reason := _unreachable(wandb.setup().settings.base_url)):
        say(f"wandb does not answer, the run is kept offline: {reason}")
        mode = "offline"
    opened = _init(run, identity, mode)
    if opened.offline:
        folder = Path(opened.dir).parent
        say(f"wandb: offline run {identity}; send it with: {shell('wandb', 'sync', folder)}")
    elif opened.url:
        say(f"wandb: {opened.url}")
    stored = kept if opened.offline else opened.step - 1 if opened.resumed else 0
    return _Wandb(opened, max(0, stored))


def _init(run: Tracked, identity: str, mode: Any) -> Any:
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=identity,
        name=os.environ.get("WANDB_NAME", run.out.name or run.title),
        dir=os.environ.get("WANDB_DIR", str(run.out.absolute())),
        config=dict(run.config),
        tags=[value for value in run.tags.values() if len(value) <= 64],
        resume="allow",
        mode=mode,
        reinit="create_new",
        allow_val_change=True,
        settings=wandb.Settings(silent=True, console="off"),
    )


class _Wandb:
    def __init__(self, run: Any, last: int) -> None:
        self._run, self._last = run, last

    def last(self) -> int:
        return self._last

    def log(self, rows: Sequence[Row]) -> None:
        for step, numbers in rows:
            self._run.log(dict(numbers), step=step)
            self._last = step

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        if status == "finished":
            self._run.summary.update({f"final/{name}": value for name, value in final.items()})
        self._run.finish(exit_code=_EXIT[status])


# ------------------------------------------------------------------------------------ offline files

_BLOCK = 32768


def _last_kept(out: Path, identity: str) -> int:
    """The last step in the offline files of a run, or 0. The last seconds before a kill may be missing."""
    root = Path(os.environ.get("WANDB_DIR", out))
    steps = [
        record.history.step.num
        for path in root.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
    return max(steps, default=0)


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run's file before the first incomplete one.

    The file is a LevelDB log: blocks of 32 KiB of records with a checksum, a length and a type.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    at, parts = 7, b""  # after wandb's header
    with suppress(DecodeError):
        while at + 7 <= len(data):
            if _BLOCK - at % _BLOCK < 7:  # a block's end holds no record
                at += _BLOCK - at % _BLOCK
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            at += 7
            if kind == 0 or at + size > len(data):
                return
            parts = data[at : at + size] if kind in (1, 2) else parts + data[at : at + size]
            at += size
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                yield record
