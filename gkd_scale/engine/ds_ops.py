"""Which of DeepSpeed's ops are installed or can be compiled, by its own builders."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

COMPILE_SECONDS = 900
_COMPILE = """
import sys
from deepspeed.ops.op_builder.all_ops import ALL_OPS
ALL_OPS[sys.argv[1]].load(verbose=False)
"""


class Op(NamedTuple):
    """``installed`` with DeepSpeed; ``compatible`` if it compiles here; ``library`` when it is compiled."""

    installed: bool
    compatible: bool
    library: Path | None


def ops() -> dict[str, Op]:
    """All ops of DeepSpeed for this machine's accelerator, by name."""
    logging.disable(logging.WARNING)  # DeepSpeed prints to stdout when it is imported
    try:
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        return {
            name: Op(bool(installed_ops.get(name)), _compatible(builder), _library(name))
            for name, builder in ALL_OPS.items()
            if name != "deepspeed_not_implemented"
        }
    finally:
        logging.disable(logging.NOTSET)


def _compatible(builder: object) -> bool:
    try:
        return bool(builder.is_compatible(verbose=False))  # type: ignore[attr-defined]
    except Exception:  # builders raise all kinds of errors if CUDA is missing
        return False


def _library(name: str) -> Path | None:
    """The library of an op that PyTorch compiled before; None if there is none."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    libraries = [*root.glob(f"{name}/{name}.so"), *root.glob(f"{python}_*/{name}/{name}.so")]
    return next(iter(libraries), None)


def compile_seconds(name: str) -> float | str:
    """Compile an op in a temporary folder. Returns the seconds, or the last line of the error."""
    with tempfile.TemporaryDirectory(prefix="gkd-scale-op-") as folder:
        began = time.monotonic()
        try:
            process = subprocess.run(
                [sys.executable, "-c", _COMPILE, name],
                env={**os.environ, "TORCH_EXTENSIONS_DIR": folder},
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"not compiled within {COMPILE_SECONDS} s"
        if process.returncode:
            return (process.stderr.strip().splitlines() or ["no message"])[-1][:300]
        return time.monotonic() - began
