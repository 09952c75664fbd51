"""Checkpoints that are whole, safe, and independent of world size and ZeRO stage.

DeepSpeed's checkpoints are one pickle a rank for one world size, and after a kill ``latest`` may name a
half-written folder. Ours is one safetensors file of whole tensors: parameters in fp32, the optimizer's
moments, the moving average, and buffers. All ranks take a snapshot in the memory of rank 0, which writes it
under a temporary name, calls fsync and renames it (:mod:`gkd_scale.engine.saver`, beside the next steps).
Older ones are removed only afterwards, so a kill at any moment leaves a whole one. Each rank reads the part
that it holds, so a run goes on exactly where it was, also with another number of ranks or another ZeRO stage.

All randomness of training is a function of (seed, step), so a checkpoint holds no generator state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale import files
from gkd_scale.engine import safetensors_stream, zero
from gkd_scale.engine.ema import Ema
from gkd_scale.engine.run import begin_again, refuse_changed
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import DamageError, nearest

_NAME = re.compile(r"step-(\d{8})\.safetensors")


def path(folder: Path, step: int) -> Path:
    """The checkpoint after optimizer step number ``step``."""
    return folder / f"step-{step:08d}.safetensors"


def steps(folder: Path) -> list[int]:
    """The steps that have a whole checkpoint, ascending."""
    matches = (_NAME.fullmatch(file.name) for file in folder.glob("step-*.safetensors"))
    return sorted(int(match[1]) for match in matches if match)


def newest(folders: Sequence[Path]) -> int:
    """The newest step with a whole checkpoint in every folder, or 0."""
    return max(set.intersection(*(set(steps(folder)) for folder in folders)), default=0)


def remove_torn(folders: Sequence[Path]) -> None:
    """Remove the partial files that a kill left."""
    for folder in folders:
        for file in folder.glob(f"step-*{files.TEMPORARY}"):
            file.unlink()


@dataclass(frozen=True)
class Snapshot:
    """A run's state after ``step``: whole ``tensors`` in the CPU's memory, on rank 0 alone, and ``facts``."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def take(step: int, engine: Any, ema: Ema | None, runtime: Runtime, identity: dict[str, Any]) -> Snapshot:
    """Copy the state after ``step``. Collective."""
    facts = {"step": step, "optimizer_step": zero.optimizer_step(engine), "identity": identity}
    if scale := zero.loss_scale(engine):
        facts["loss_scale"] = scale
    return Snapshot(step, _collect(engine, ema, runtime), facts)


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write the checkpoint of a snapshot, whole or not at all. OSError if, for example, the disk is full."""
    with files.atomic(path(folder, snapshot.step)) as file:
        metadata = {"gkd_scale": json.dumps(snapshot.facts)}
        safetensors_stream.write(file, snapshot.tensors, metadata)


def prune(folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove all checkpoints except the newest ``keep`` and those of every ``keep_every``-th step."""
    for step in steps(folder)[:-keep]:
        if keep_every is None or step % keep_every:
            path(folder, step).unlink()


def load(folder: Path, step: int, engine: Any, ema: Ema | None, identity: dict[str, Any]) -> None:
    """Restore the checkpoint of ``step``; raises as :func:`check`."""
    with _open(folder, step, identity) as (reader, meta):
        _restore(engine, ema, reader, int(meta["optimizer_step"]))
    zero.set_loss_scale(engine, meta.get("loss_scale", {}))


def check(folder: Path, step: int, identity: dict[str, Any]) -> None:
    """Raise RunError, which names the keys, if the checkpoint of ``step`` belongs to a run with another
    ``identity``, and DamageError if the file cannot be read.
    """
    with _open(folder, step, identity):
        pass


@contextmanager
def _open(folder: Path, step: int, identity: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The reader of a checkpoint, and its facts; raises as :func:`check`, also for errors of the block."""
    from safetensors import SafetensorError, safe_open

    file = path(folder, step)
    try:
        with safe_open(str(file), framework="pt") as reader:
            meta = json.loads(reader.metadata()["gkd_scale"])
            refuse_changed(folder.parent, meta["identity"], identity)
            yield reader, meta
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamageError(
            f"{file} cannot be read: {error}", "remove it: the run goes on from the one before"
        ) from None


def fork(source: Path, folder: Path, changes: dict[str, Any]) -> None:
    """Replace all checkpoints in ``folder`` by a copy of the file ``source``.

    The identity in the copy has ``changes``: population-based training goes on from another run with other
    settings.
    """
    from safetensors import safe_open

    with safe_open(str(source), framework="pt") as reader:
        meta = json.loads(reader.metadata()["gkd_scale"])
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    meta["identity"] |= changes
    begin_again(folder.parent, meta["identity"])
    for step in steps(folder):
        path(folder, step).unlink()
    write(folder, Snapshot(int(meta["step"]), tensors, meta))


def _trainable(engine: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    persistent = module.state_dict(keep_vars=True)
    return {name: value for name, value in module.named_buffers() if name in persistent}


def _collect(engine: Any, ema: Ema | None, runtime: Runtime) -> dict[str, Tensor]:
    """Every tensor of the run's state, whole, on rank 0's CPU; empty on other ranks. Collective."""
    tensors: dict[str, Tensor] = {}
    zero.link(engine)

    def add(name: str, value: Tensor) -> None:
        if runtime.main:
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()

    for name, parameter in _trainable(engine).items():
        add(f"param/{name}", zero.master(parameter))
        for key in zero.moments(parameter):
            add(f"{key}/{name}", zero.moment(engine, parameter, key))
    for name, value in (ema.full() if ema else {}).items():
        add(f"ema/{name}", value)
    for name, value in _buffers(engine.module).items():  # the loop keeps them equal on all ranks
        add(f"buffer/{name}", value)
    return tensors


@torch.no_grad()
def _restore(engine: Any, ema: Ema | None, reader: Any, optimizer_step: int) -> None:
    """Load the tensors of ``reader`` into the engine; ValueError if they are another model's."""
    zero.prepare(engine, optimizer_step)
    parameters = _trainable(engine)
    names = {key.removeprefix("param/") for key in reader.keys() if key.startswith("param/")}  # noqa: SIM118
    if names != set(parameters):
        odd = sorted(names ^ set(parameters))
        raise ValueError(f"its parameters are not the model's: {odd[0]} ({nearest(odd[0], parameters)})")
    for name, parameter in parameters.items():
        moments = {key: reader.get_tensor(f"{key}/{name}") for key in zero.moments(parameter)}
        zero.restore(engine, parameter, reader.get_tensor(f"param/{name}"), moments, optimizer_step)
    if ema is not None:
        ema.load({name: reader.get_tensor(f"ema/{name}") for name in parameters})
    for name, value in _buffers(engine.module).items():
        value.copy_(reader.get_tensor(f"buffer/{name}"))
