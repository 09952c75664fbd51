"""Weights & Biases: a run of the project ``WANDB_PROJECT`` or ``gkd-scale``, its files under ``OUT/wandb``.

``WANDB_MODE`` and wandb's other settings apply. It never prompts for a key: if there is none and
the mode is not offline, the training does not begin. If the server does not answer, the run stays offline.
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
from gkd_scale.engine.loggers import Logger, LogRow, RunFacts, Status
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

    if _mode() in ("offline", "disabled"):
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


def start(run: RunFacts, start: int, say: Callable[[str], None]) -> Logger:  # noqa: ARG001
    """The run whose id is stored in ``run.out``, or a new one."""
    import wandb

    previous = run.memory("wandb").get("run")
    identity = previous or secrets.token_hex(4)
    if previous is None:
        run.remember("wandb", run=identity)
    offline_step = _last_offline_step(run.out, identity)
    mode = None
    if _mode() == "online" and (reason := _unreachable(wandb.setup().settings.base_url)):
        say(f"wandb does not answer, the run is kept offline: {reason}")
        mode = "offline"
    wandb_run = _init(run, identity, mode)
    if wandb_run.offline:
        folder = Path(wandb_run.dir).parent
        say(f"wandb: offline run {identity}; send it with: {shell('wandb', 'sync', folder)}")
    elif wandb_run.url:
        say(f"wandb: {wandb_run.url}")
    last = offline_step if wandb_run.offline else wandb_run.step - 1 if wandb_run.resumed else 0
    return _Wandb(wandb_run, max(0, last))


def _init(run: RunFacts, identity: str, mode: Any) -> Any:
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

    def log(self, rows: Sequence[LogRow]) -> None:
        for step, numbers in rows:
            self._run.log(dict(numbers), step=step)
            self._last = step

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        if status == "finished":
            self._run.summary.update({f"final/{name}": value for name, value in final.items()})
        self._run.finish(exit_code=_EXIT[status])


# ------------------------------------------------------------------------------------ offline files

_BLOCK = 32768


def _last_offline_step(out: Path, identity: str) -> int:
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
    offset, parts = 7, b""  # after wandb's header
    with suppress(DecodeError):
        while offset + 7 <= len(data):
            if _BLOCK - offset % _BLOCK < 7:  # a block's end holds no record
                offset += _BLOCK - offset % _BLOCK
                continue
            _, size, kind = struct.unpack("<IHB", data[offset : offset + 7])
            offset += 7
            if kind == 0 or offset + size > len(data):
                return
            parts = data[offset : offset + size] if kind in (1, 2) else parts + data[offset : offset + size]
            offset += size
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                yield record
