"""DeepSpeed's C++ and CUDA ops: which are installed, which would be compiled at first use, and the tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line

if TYPE_CHECKING:
    from gkd_scale.engine.ds_ops import Op

USES = {"quantizer": "zero_quantized_weights and zero_quantized_gradients (ZeRO++)"}
"""Ops that a training may need, and for which settings: its optimizer and collectives are PyTorch's."""
SAMPLE = "cpu_adam"
"""What ``--compile`` compiles: an op that needs no GPU, so that it tries the compiler everywhere."""


def check(cfg: DoctorConfig) -> Iterator[Line]:
    """Lines for compilers, for each op that may be needed, and one for the others."""
    yield from _tools()
    from gkd_scale.engine import ds_ops

    ops = ds_ops.ops()
    states = {name: _state(op) for name, op in ops.items()}
    for name, use in USES.items():
        state = states.get(name, "not in DeepSpeed for this device")
        if name in ops and ops[name].compatible:
            yield Line(name, "ok", state)
        else:
            yield Line(name, "warn", state, f"{use} will not work: they need a GPU, nvcc and a compiler")
    compilable = sorted(name for name, state in states.items() if state == _WOULD and name not in USES)
    yield Line(
        "other ops",
        "ok",
        f"not needed to train; would be compiled if something used them: {', '.join(compilable) or 'none'}",
        data=states,
    )
    if cfg.compile:
        yield _compile_line(ds_ops.compile_seconds(SAMPLE))
    else:
        yield Line("compile time", "ok", f"not measured: --compile compiles {SAMPLE}, a minute or two")


_WOULD = "would be compiled at its first use"


def _state(op: Op) -> str:
    if op.installed:
        return "installed"
    if op.library is not None:
        return f"compiled already: {op.library}"
    return _WOULD if op.compatible else "cannot be compiled here"


def _compile_line(result: float | str) -> Line:
    if isinstance(result, str):
        return Line("compile time", "fail", f"{SAMPLE}: {result}", "DeepSpeed's message says what is missing")
    return Line("compile time", "ok", f"{SAMPLE} in {result:.0f} s", data={"seconds": result})


def _tools() -> Iterator[Line]:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        yield Line("compiler", "warn", "none", "install g++: DeepSpeed compiles ops at their first use")
    else:
        yield Line("compiler", "ok", _first_line(compiler, "--version"))
    ninja = shutil.which("ninja")
    if ninja is None:
        yield Line("ninja", "warn", "not on PATH", "pip install ninja, in the environment that is active")
    else:
        yield Line("ninja", "ok", _first_line(ninja, "--version"))
    yield _nvcc()


def _nvcc() -> Line:
    import torch

    cuda = torch.version.cuda
    if not torch.cuda.is_available():
        return Line("nvcc", "warn", "no CUDA device", "CUDA ops are for GPUs")
    from torch.utils.cpp_extension import CUDA_HOME

    path = f"{CUDA_HOME}/bin/nvcc" if CUDA_HOME else shutil.which("nvcc")
    match = re.search(r"release (\d+)\.(\d+)", _output(path, "--version")) if path else None
    if match is None:
        return Line("nvcc", "warn", "none", f"install CUDA {cuda} and set CUDA_HOME, to compile CUDA ops")
    text = f"{match[1]}.{match[2]}, PyTorch is built for CUDA {cuda}"
    if cuda is not None and match[1] != cuda.partition(".")[0]:
        return Line("nvcc", "warn", text, f"CUDA ops need CUDA {cuda}: set CUDA_HOME to one")
    return Line("nvcc", "ok", text)


def _first_line(*command: str) -> str:
    return (_output(*command).splitlines() or ["no answer"])[0]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
