"""A run folder: its options (``config.yaml``), those that must not change (``begun.json``), and whether the
run is done (``run.json``, which is written last).

The exit status of ``deepspeed`` is not proof that its ranks ended well; ``run.json`` is. While a launch
trains into a folder, its rank 0 holds the folder's lock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gkd_scale import __version__, config, files
from gkd_scale.cache.spec import SPEC
from gkd_scale.engine import ds_config, loggers, optimizers
from gkd_scale.engine.config import RunConfig
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import ConfigError, RunError

RECORD = "run.json"
BEGUN = "begun.json"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
OTHERS = {SPEC: "a teacher cache", "search.json": "a search", "data.json": "the embedded scenes"}
"""Other folders that our commands write, by a file that each of them has."""
LATER = {"optim.name": optimizers.DEFAULT}
"""Settings that came after the first runs, with what runs did before; an identity leaves that value out."""


def deepspeed_plan(run: RunConfig, runtime: Runtime, launchers: Path, default_batch: int) -> DeepSpeedPlan:
    """The DeepSpeed config of a run, whose loggers are there; ConfigError on all ranks.

    ``launchers`` is the folder with the DeepSpeed configs; ``default_batch`` a global batch.
    """
    runtime.on_main(lambda: loggers.require(run.loggers()))
    return ds_config.resolve(
        run.ds_config,
        launchers,
        global_batch=run.global_batch,
        world=runtime.world,
        device=runtime.checked_for,
        default=default_batch,
    )


def identity(options: Any, **facts: Any) -> dict[str, Any]:
    """What must not change when a run goes on: ``options`` without the volatile ones, and ``facts``.

    ``facts`` has values that follow from volatile options, for example the steps that ``--epochs`` gives.
    """
    settings: dict[str, Any] = json.loads(json.dumps({**config.to_dict(options, volatile=False), **facts}))
    for name, before in LATER.items():
        section, _, key = name.rpartition(".")
        if settings.get(section, {}).get(key) == before:
            del settings[section][key]
    return settings


@contextmanager
def hold(runtime: Runtime, folders: Sequence[Path], *, dry: bool = False) -> Iterator[None]:
    """Rank 0 holds run folders for this launch; RunError on all ranks if another process holds one.

    Nobody holds a run that is done: it is only read. ``dry``: only check whether they could be held.
    """
    with ExitStack() as stack:

        def claim() -> None:
            for folder in sorted(set(folders)):
                if read(folder) is not None:
                    continue
                if dry:
                    files.require_claimable(folder)
                else:
                    stack.enter_context(files.claim(folder))

        runtime.on_main(claim)
        yield


def is_done(out: Path, kind: str) -> bool:
    """Whether the run in ``out`` is done; RunError if the folder holds something else. Writes nothing."""
    record = read(out)
    run = record or files.read_json(out / BEGUN)
    if run and run.get("kind") != kind:
        state = "finished" if record else "begun"
        raise RunError(f"{out} holds a {state} {run.get('kind')} run", "give another --out")
    for name, content in OTHERS.items():
        if (out / name).exists():
            raise RunError(f"{out} holds {content} ({name})", "give another --out")
    return record is not None


def begin(out: Path, options: Any, kind: str, now: dict[str, Any]) -> None:
    """Write ``config.yaml`` and ``begun.json``. ``now``, of :func:`identity`, is what must not change.

    RunError, before anything is written, as :func:`require_begun_alike`.
    """
    require_begun_alike(out, options, now)
    files.write_text(out / CONFIG, config.to_yaml(options))
    files.write_json(out / BEGUN, {"kind": kind, "identity": now})


def require_begun_alike(out: Path, options: Any, now: dict[str, Any]) -> None:
    """RunError if the folder holds a run of other settings, even one without a checkpoint."""
    record = files.read_json(out / BEGUN)
    before = record["identity"] if record else _identity_of_checkpoint(out)
    if before is not None:
        refuse_changed(out, before, now)
    elif not has_checkpoint(out):
        _refuse_other_config(out, options)


def begin_again(out: Path, now: dict[str, Any]) -> None:
    """Write another ``begun.json``: the run goes on from a checkpoint of another run."""
    record = files.read_json(out / BEGUN)
    if record:
        files.write_json(out / BEGUN, {**record, "identity": now})


def has_checkpoint(out: Path) -> bool:
    """Whether there is a whole checkpoint."""
    return any((out / CHECKPOINTS).glob("step-*.safetensors"))


def _identity_of_checkpoint(out: Path) -> dict[str, Any] | None:
    """The identity in the newest checkpoint; None if there is none, or it cannot be read."""
    from safetensors import SafetensorError, safe_open

    newest = max((out / CHECKPOINTS).glob("step-*.safetensors"), default=None)
    if newest is None:
        return None
    try:
        with safe_open(str(newest), framework="pt") as file:
            return json.loads(file.metadata()["gkd_scale"])["identity"]
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        return None


def _refuse_other_config(out: Path, options: Any) -> None:
    """RunError if ``config.yaml`` has other settings. Older versions write no other file at the start."""
    path = out / CONFIG
    if not path.exists():
        return
    try:
        before = config.build(type(options), config.read_yaml(path), str(path))
    except ConfigError as error:
        raise RunError(
            f"{path} is not of such a run: {error.message}", "give another --out, or remove it"
        ) from None
    refuse_changed(out, identity(before), identity(options))


def require_same(out: Path, now: dict[str, Any]) -> None:
    """RunError if the finished run in ``out`` has other settings."""
    before = (read(out) or {}).get("identity", {})
    refuse_changed(out, before, now)


def refuse_changed(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """RunError, which names each setting that differs between ``before`` and ``now``."""
    old, new = LATER | leaves_of(before), LATER | leaves_of(now)
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys)
        removal = "" if has_checkpoint(out) else f", or remove {out}: it has no checkpoint yet"
        if all(key not in old for key in keys):
            hint = "it was begun by an earlier version of gkd-scale: give another --out"
        else:
            hint = f"give another --out, or the same settings to go on{removal}"
        raise RunError(f"{out} holds a run with other settings ({changes})", hint)


def leaves_of(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name; an empty section has none."""
    return {name: value for name, value in loggers.flat(values).items() if value != {}}


def finish(out: Path, kind: str, identity: dict[str, Any], **facts: Any) -> None:
    """Write ``run.json``, after everything else in the folder."""
    files.write_json(
        out / RECORD,
        {
            "kind": kind,
            "status": "complete",
            "gkd_scale": __version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "identity": identity,
            **facts,
        },
    )


def read(out: Path) -> dict[str, Any] | None:
    """``run.json`` of ``out``; None if the run is not done."""
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "choose another --out") from None
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}", "remove it, then run the same command") from None
    if not isinstance(record, dict) or "kind" not in record:
        raise RunError(f"{path} is no record of a run", "give another --out")
    return record
