"""Where in a file a network lies, and under which names.

Checkpoints hold a network under prefixes (``teacher.backbone.``, ``module.``, ``base_model.model.``), more
than one network (a student, its teacher, their averages), and names of other projects (``dialects.py``).
The prefix is found by what is in the file: it is the one under which most of the network's own tensors lie,
with their shapes. Where two networks fit equally well and differ, one without further blocks goes before a
larger one; then an average over training goes first (``ema``), then a ``teacher``, then one without such a
name, then a ``student``, last a ``momentum`` or ``target`` encoder.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import nn

from gkd_scale.errors import ModelError
from gkd_scale.models import dialects
from gkd_scale.models.tensor_files import StateDict

KERNEL = "patch_embed.proj.weight"

# What wrappers of modules put into the middle of names.
_TRANSPARENT = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)

_CHUNKED = re.compile(r"(?P<before>(?:.*\.)?blocks)\.(?P<chunk>\d+)\.(?P<block>\d+)\.(?P<rest>.+)")

# Copies of a network that are no weights: an optimiser's moments, gradients.
_NO_WEIGHTS = {"optimizer", "optimizers", "optim", "exp", "grad", "grads", "gradients", "moments"}
_ORDER = (
    {"ema", "average", "averaged", "avg", "swa", "shadow"},
    {"teacher"},
    set[str](),
    {"student", "online"},
    {"momentum", "target", "k"},
)
_MOST = 20


@dataclass(frozen=True)
class Found:
    """A network in a file: under ``prefix``, ``raw`` as the file has it, ``state`` as the model wants it.

    ``copies`` are prefixes of other networks of this kind in the file, ``equals`` those among them that fit
    as well and differ, ``rivals`` those that no order of preference tells from this one; ``outside`` are
    names that lie elsewhere. ``failure`` is why ``state`` is still ``raw``, which did not convert.
    """

    prefix: str
    raw: StateDict
    state: StateDict
    copies: tuple[str, ...]
    equals: tuple[str, ...]
    rivals: tuple[str, ...]
    outside: tuple[str, ...]
    failure: Exception | None = None


def find(wanted: StateDict, flat: StateDict, convert: Callable[[StateDict], StateDict]) -> Found:
    """The network in ``flat`` that fits a model's tensors best; ``convert`` is :func:`timm_filter` or more.

    Raises ModelError where two tensors get one name.
    """
    names = rename(flat, wanted)
    candidates = _by_suffix(names, wanted)
    full = _needed(wanted)
    fits = {prefix: _fit(_under(names, prefix), wanted) for prefix in candidates}
    complete = any(fit[0] == full for fit in fits.values())
    if not complete:
        for prefix in dict.fromkeys([*candidates, *_trunks(names, full)]):
            fits[prefix] = max(_converted_fit(names, prefix, wanted, convert), fits.get(prefix, (0, 0)))
    best = max(fits.values(), default=(0, 0))

    def order(prefix: str) -> tuple[bool, int, str]:
        return _is_larger(_under(names, prefix), wanted), *_preference(prefix)

    fitting = sorted((prefix for prefix, fit in fits.items() if fit == best), key=order)
    prefix = fitting[0] if any(best) else ""
    raw = _under(names, prefix)
    failure = None
    try:
        state = convert(raw)
    except Exception as error:
        state, failure = raw, error
    copies = [
        other
        for other, fit in fits.items()
        if other != prefix and 2 * fit[0] >= best[0] > 0 and not prefix.startswith(other)
    ]
    equals = [
        other
        for other in fitting
        if other in copies and best[0] == full and not _same(raw, _under(names, other))
    ]
    rivals = [other for other in equals if order(other)[:2] == order(prefix)[:2]]
    outside = [name for name in names if not name.startswith(prefix)]
    return Found(prefix, raw, state, tuple(copies), tuple(equals), tuple(rivals), tuple(outside), failure)


def timm_filter(model: nn.Module, state: StateDict) -> StateDict:
    """``state`` as timm's own code for the family turns it into the model's names and sizes."""
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    with redirect_stdout(StringIO()):  # it prints what it passes over
        return dict(convert(dict(state), model))


def rename(flat: StateDict, wanted: StateDict) -> StateDict:
    """``flat`` with names as timm's models have them: without wrappers, chunks, and words of others."""
    names = _renamed({name: _TRANSPARENT.sub("", name) for name in flat}, flat)
    if not any(_CHUNKED.fullmatch(name) for name in wanted):
        names = _unchunk(names)
    if other := dialects.renamed(names, wanted):
        names = dialects.fitted(_renamed(other, names), wanted)
    if "blocks.0.ls1.gamma" in wanted:
        names = _renamed({name: re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name) for name in names}, names)
    return names


def _renamed(new: dict[str, str], names: StateDict) -> StateDict:
    """``names`` under their ``new`` names; ModelError where two become one."""
    made: StateDict = {}
    for name, value in names.items():
        if new.get(name, name) in made:
            raise ModelError(
                f"two tensors have the name {new.get(name, name)}, with and without wrappers",
                "save the network once, in one state dict",
            )
        made[new.get(name, name)] = value
    return made


def _unchunk(names: StateDict) -> StateDict:
    """Blocks in chunks (``blocks.1.6.norm1.bias``) as one list.

    In the chunks of DINOv2 a block keeps its number; where chunks count from 0 each, they follow each other.
    """
    found = {name: match for name in names if (match := _CHUNKED.fullmatch(name))}
    blocks = {(m["before"], int(m["chunk"]), int(m["block"])) for m in found.values()}
    number = {}
    for before in {each[0] for each in blocks}:
        of = sorted(each for each in blocks if each[0] == before)
        keep = len({block for _, _, block in of}) == len(of)
        number.update({each: each[2] if keep else index for index, each in enumerate(of)})
    new = {
        name: f"{m['before']}.{number[m['before'], int(m['chunk']), int(m['block'])]}.{m['rest']}"
        for name, m in found.items()
    }
    return _renamed(new, names)


def _under(names: StateDict, prefix: str) -> StateDict:
    return {name[len(prefix) :]: value for name, value in names.items() if name.startswith(prefix)}


def _needed(wanted: StateDict) -> int:
    return sum(not name.endswith("num_batches_tracked") for name in wanted)


def _by_suffix(names: StateDict, wanted: StateDict) -> list[str]:
    """Prefixes under which the most of the wanted names lie, the most first."""
    found: Counter[str] = Counter()
    for name in names:
        start = 0
        while True:
            if name[start:] in wanted:
                found[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    kept = [(prefix, n) for prefix, n in found.most_common(_MOST) if not _words(prefix) & _NO_WEIGHTS]
    return [prefix for prefix, count in kept if 2 * count >= kept[0][1]]


def _trunks(names: StateDict, needed: int) -> list[str]:
    """Prefixes that hold at least half as many tensors as are needed, the shortest first."""
    found: Counter[str] = Counter()
    for name in names:
        segments = name.split(".")
        for depth in range(len(segments)):
            found["".join(f"{segment}." for segment in segments[:depth])] += 1
    trunks = [p for p, count in found.items() if 2 * count >= needed and not _words(p) & _NO_WEIGHTS]
    return sorted(trunks, key=len)[:_MOST]


def _fit(state: StateDict, wanted: StateDict) -> tuple[int, int]:
    """How many of the wanted tensors ``state`` holds with shapes that fit, and how many at all."""
    held = [name for name in wanted if name in state and not name.endswith("num_batches_tracked")]
    fitting = sum(state[name].shape == wanted[name].shape or _resampled(name) for name in held)
    return fitting, len(held)


def _converted_fit(
    names: StateDict, prefix: str, wanted: StateDict, convert: Callable[[StateDict], StateDict]
) -> tuple[int, int]:
    """As :func:`_fit` after ``convert``; nothing fits where that fails."""
    try:
        return _fit(convert(_under(names, prefix)), wanted)
    except Exception:
        return 0, 0


def _resampled(name: str) -> bool:
    """Whether timm resamples a tensor of this name to the model's size."""
    return name == KERNEL or "pos_embed" in name or "relative_position" in name or "rel_pos" in name


def _is_larger(state: StateDict, wanted: StateDict) -> bool:
    """Whether ``state`` holds more of the model's parts than the model has: a deeper network's tensors."""
    parts = {name.partition(".")[0] for name in wanted if "." in name}
    return any(name not in wanted and name.partition(".")[0] in parts for name in state)


def of_an_optimizer(name: str) -> bool:
    """Whether a tensor of this name is an optimizer's, or a gradient."""
    return bool(_words(name) & _NO_WEIGHTS)


def _words(prefix: str) -> set[str]:
    return set(re.split(r"[._]", prefix.lower()))


def _preference(prefix: str) -> tuple[int, str]:
    words = _words(prefix)
    ranks = [rank for rank, known in enumerate(_ORDER) if words & known]
    return (ranks[0] if ranks else 2), prefix


def _same(one: StateDict, other: StateDict) -> bool:
    pairs = [(one[name], other[name]) for name in one.keys() & other.keys()]
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
