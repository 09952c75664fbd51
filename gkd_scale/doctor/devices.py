"""GPUs: memory, precisions, NCCL and peer-to-peer access. (Written for CUDA; no GPU has run it yet.)"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations

import torch
import torch.distributed as dist

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line, State, gib

NCCL_SECONDS = 90
_NONE = "no CUDA device"
_FREE = 0.5
"""Share of a GPU's memory that should be free."""
_COLLECTIVE = """
import time, torch
count = torch.cuda.device_count()
parts = [torch.ones(1 << 24, device=f"cuda:{each}") for each in range(count)]
for _ in range(2):
    for part in parts:
        part.fill_(1)
    [torch.cuda.synchronize(each) for each in range(count)]
    began = time.perf_counter()
    torch.cuda.nccl.all_reduce(parts)
    [torch.cuda.synchronize(each) for each in range(count)]
    seconds = time.perf_counter() - began
assert all(float(part[-1]) == count for part in parts), "the sum is wrong"
print(seconds)
"""


def check(cfg: DoctorConfig) -> Iterator[Line]:  # noqa: ARG001
    """A line for each GPU, then for precisions, NCCL and P2P; without GPUs each of them warns."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield Line(
            "gpu",
            "warn",
            _NONE,
            "on a machine with GPUs: see nvidia-smi, CUDA_VISIBLE_DEVICES, and whether this PyTorch "
            f"({torch.__version__}) is built for CUDA",
        )
    for index in range(count):
        yield _gpu(index)
    if count:
        yield _precision("bf16", count, (8, 0), "bf16 units", "use fp16, or zero2.json (fp32)")
        yield _precision("fp16", count, (7, 0), "fp16 tensor cores", "it is slow there: use fp32")
    else:
        ones = torch.ones(8, 8, dtype=torch.bfloat16)
        works = float((ones @ ones)[0, 0]) == 8
        yield Line("bf16", "ok" if works else "fail", f"{'works' if works else 'wrong'} on the CPU")
        yield Line("fp16", "warn", _NONE, "fp16 needs one: use zero2.json or zero2_bf16.json here")
    yield from _nccl(count)
    yield _peers(count)


def _gpu(index: int) -> Line:
    free, total = torch.cuda.mem_get_info(index)
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    text = f"{name}, compute capability {capability[0]}.{capability[1]}, {gib(free)} free of {gib(total)}"
    data = {"free": float(free), "total": float(total)}
    state: State = "warn" if free < _FREE * total else "ok"
    return Line(f"gpu {index}", state, text, "another process uses its memory: see nvidia-smi", data)


def _precision(name: str, count: int, capability: tuple[int, int], units: str, todo: str) -> Line:
    """Whether all GPUs are of a compute capability that has the units of a precision."""
    older = [str(index) for index in range(count) if torch.cuda.get_device_capability(index) < capability]
    if older:
        return Line(name, "warn", f"GPU {', '.join(older)} has no {units}", todo)
    return Line(name, "ok", "all GPUs")


def _nccl(count: int) -> Iterator[Line]:
    if not count:
        yield Line("nccl", "warn", _NONE, "ranks on CPUs use gloo; NCCL is for GPUs")
        gloo = dist.is_gloo_available()
        text = "available" if gloo else "not in this PyTorch"
        todo = "install a PyTorch with gloo: several ranks on CPUs need it"
        yield Line("gloo", "ok" if gloo else "fail", text, todo)
        return
    if not dist.is_nccl_available():
        yield Line("nccl", "fail", "not in this PyTorch", "install a PyTorch that is built for CUDA")
        return
    version = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        process = subprocess.run(
            [sys.executable, "-c", _COLLECTIVE], capture_output=True, text=True, timeout=NCCL_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield Line(
            "nccl",
            "fail",
            f"{version}: an all-reduce over {count} GPU(s) did not end within {NCCL_SECONDS} s",
            "try NCCL_P2P_DISABLE=1; NCCL_DEBUG=INFO says where it hangs",
        )
        return
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1][:200]
        yield Line("nccl", "fail", f"{version}: {reason}", "NCCL_DEBUG=INFO says more")
        return
    seconds = float(process.stdout.split()[-1])
    text = f"{version}, all-reduce of 64 MiB over {count} GPU(s) in {1000 * seconds:.1f} ms"
    yield Line("nccl", "ok", text, data={"seconds": seconds})


def _peers(count: int) -> Line:
    if not count:
        return Line("p2p", "warn", _NONE, "peer-to-peer access is between GPUs")
    if count == 1:
        return Line("p2p", "ok", "one GPU, no peers")
    pairs = list(permutations(range(count), 2))
    wrong = [f"{a}-{b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if wrong:
        text = ", ".join(wrong[:8]) + (" ..." if len(wrong) > 8 else "")
        return Line(
            "p2p",
            "warn",
            f"{len(wrong)} of {len(pairs)} pairs cannot reach each other's memory: {text}",
            "their traffic goes through the host: see nvidia-smi topo -m, and ACS in the BIOS",
        )
    return Line("p2p", "ok", f"all {len(pairs)} pairs")
