"""A run folder: what was asked (``config.yaml``), and whether it is done (``run.json``, written last).

The exit status of ``deepspeed`` is not proof that its ranks ended well; ``run.json`` is.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gkd_scale import __version__, config, files
from gkd_scale.errors import RunError

RECORD = "run.json"
VOLATILE = (
    "out",
    "save_every",
    "keep",
    "keep_every",
    "grad_checkpointing",
    "workers",
    "on_corrupt",
    "mirror",
    "mirror_gb",
    "ledger",
    "ds_config",
    "steps",
    "epochs",
    "global_batch",
)
"""Options that may change between a run and its resumption (sizes are kept by their resolved values)."""


def identity(options: Any, **resolved: Any) -> dict[str, Any]:
    """What must not change when a run goes on: its options less the volatile ones, and ``resolved``."""
    kept = {key: value for key, value in config.to_dict(options).items() if key not in VOLATILE}
    return json.loads(json.dumps({**kept, **resolved}))


def begin(out: Path, options: Any, kind: str) -> bool:
    """Write ``config.yaml``; True if the run is already done. RunError if ``out`` holds another kind."""
    record = read(out)
    if record and record["kind"] != kind:
        raise RunError(f"{out} holds a finished {record['kind']} run", "give another --out")
    out.mkdir(parents=True, exist_ok=True)
    if record is None:
        files.write_text(out / "config.yaml", config.to_yaml(options))
    return record is not None


def require_same(out: Path, now: dict[str, Any]) -> None:
    """RunError where the finished run in ``out`` was made with other settings."""
    before = (read(out) or {}).get("identity", {})
    refuse_changed(out, before, now)


def refuse_changed(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """RunError that names each setting that differs."""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        shown = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise RunError(
            f"{out} holds a run with other settings ({shown})",
            "give another --out, or the same settings to go on",
        )


def finish(out: Path, kind: str, identity: dict[str, Any], **facts: Any) -> None:
    """Write ``run.json``: everything else is in place."""
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
    """The completion record of ``out``, or None while the run is not done."""
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", "remove it, then run the same command") from None
    if not isinstance(record, dict) or "kind" not in record:
        raise RunError(f"{path} is no record of a run", "give another --out")
    return record
