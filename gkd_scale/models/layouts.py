"""Finds a network in a checkpoint: the prefix of its tensors, and timm's names for them.

Checkpoints hold a network under prefixes (``teacher.backbone.``, ``module.``, ``base_model.model.``), may
hold several (a student, its teacher, their averages), and may use other projects' names (``dialects.py``).
The prefix is the one under which most of the model's tensors lie, with fitting shapes. If several networks
fit equally well and differ, one without additional blocks is preferred to a deeper one. Then the order is:
an average over training (``ema``), a ``teacher``, one without such a name, a ``student``, a ``momentum`` or
``target`` encoder.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import nn

from gkd_scale.errors import ModelError
from gkd_scale.models import dialects
from gkd_scale.models.tensor_files import StateDict, below

KERNEL = "patch_embed.proj.weight"

# What wrappers of modules put into the middle of names.
_TRANSPARENT = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)

_CHUNK = re.compile(r"(?P<before>(?:.*\.)?blocks)\.(?P<chunk>\d+)\.(?P<block>\d+)\.(?P<rest>.+)")

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
class Network:
    """A network in a file: its ``prefix``, its tensors ``raw`` as in the file, and ``state`` for the model.

    ``copies`` are prefixes of other networks of this kind in the file, ``equals`` those of them that fit as
    well and differ, ``rivals`` those of equals that have the same preference; ``outside`` are names without
    the prefix. If the conversion failed, ``failure`` is its exception, and ``state`` is ``raw``.
    """

    prefix: str
    raw: StateDict
    state: StateDict
    copies: tuple[str, ...]
    equals: tuple[str, ...]
    rivals: tuple[str, ...]
    outside: tuple[str, ...]
    failure: Exception | None = None


def find(model_state: StateDict, flat: StateDict, convert: Callable[[StateDict], StateDict]) -> Network:
    """The network in ``flat`` that fits a model's tensors best; ``convert`` is :func:`timm_filter` or more.

    Raises ModelError if two tensors get one name.
    """
    names = rename(flat, model_state)
    candidates = _by_suffix(names, model_state)
    full = sum(not name.endswith("num_batches_tracked") for name in model_state)
    fits = {prefix: _fit(below(names, prefix), model_state) for prefix in candidates}
    if not any(fit[0] == full for fit in fits.values()):
        for prefix in dict.fromkeys([*candidates, *_trunks(names, full)]):
            fits[prefix] = max(_converted_fit(names, prefix, model_state, convert), fits.get(prefix, (0, 0)))
    best = max(fits.values(), default=(0, 0))

    def order(prefix: str) -> tuple[bool, int, str]:
        return _is_larger(below(names, prefix), model_state), *_preference(prefix)

    ties = sorted((prefix for prefix, fit in fits.items() if fit == best), key=order)
    prefix = ties[0] if any(best) else ""
    raw = below(names, prefix)
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
        other for other in ties if other in copies and best[0] == full and not _same(raw, below(names, other))
    ]
    rivals = [other for other in equals if order(other)[:2] == order(prefix)[:2]]
    outside = [name for name in names if not name.startswith(prefix)]
    return Network(prefix, raw, state, tuple(copies), tuple(equals), tuple(rivals), tuple(outside), failure)


def timm_filter(model: nn.Module, state: StateDict) -> StateDict:
    """``state`` as timm's own code for the family turns it into the model's names and sizes."""
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    with redirect_stdout(StringIO()):  # it prints what it passes over
        return dict(convert(dict(state), model))


def rename(flat: StateDict, model_state: StateDict) -> StateDict:
    """``flat`` under timm's names: without wrappers and chunks, and translated from other projects' names."""
    names = _rename({name: _TRANSPARENT.sub("", name) for name in flat}, flat)
    if not any(_CHUNK.fullmatch(name) for name in model_state):
        names = _unchunk(names)
    if new := dialects.new_names(names, model_state):
        names = dialects.fit(_rename(new, names), model_state)
    if "blocks.0.ls1.gamma" in model_state:
        names = _rename({name: re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name) for name in names}, names)
    return names


def _rename(new: dict[str, str], names: StateDict) -> StateDict:
    """``names`` under their ``new`` names; ModelError if two become one."""
    state: StateDict = {}
    for name, value in names.items():
        if new.get(name, name) in state:
            raise ModelError(
                f"two tensors have the name {new.get(name, name)}, with and without wrappers",
                "save the network once, in one state dict",
            )
        state[new.get(name, name)] = value
    return state


def _unchunk(names: StateDict) -> StateDict:
    """Renames blocks in chunks (``blocks.1.6.norm1.bias``) to those of one list.

    DINOv2's chunks keep the number of a block. If each chunk counts from 0, blocks are numbered in order.
    """
    matches = {name: match for name in names if (match := _CHUNK.fullmatch(name))}
    blocks = {(m["before"], int(m["chunk"]), int(m["block"])) for m in matches.values()}
    number = {}
    for before in {key[0] for key in blocks}:
        keys = sorted(key for key in blocks if key[0] == before)
        keep = len({block for _, _, block in keys}) == len(keys)
        number.update({key: key[2] if keep else index for index, key in enumerate(keys)})
    new = {
        name: f"{m['before']}.{number[m['before'], int(m['chunk']), int(m['block'])]}.{m['rest']}"
        for name, m in matches.items()
    }
    return _rename(new, names)


def _cuts(names: StateDict) -> Iterator[tuple[str, str]]:
    """Each name as a prefix, which is empty or ends with a dot, and the rest."""
    for name in names:
        yield "", name
        yield from ((name[: dot.end()], name[dot.end() :]) for dot in re.finditer(r"\.", name))


def _by_suffix(names: StateDict, model_state: StateDict) -> list[str]:
    """Prefixes under which most of the model's names lie, those with the most first."""
    counts = Counter(prefix for prefix, rest in _cuts(names) if rest in model_state)
    candidates = [(prefix, n) for prefix, n in counts.most_common(_MOST) if not of_an_optimizer(prefix)]
    return [prefix for prefix, count in candidates if 2 * count >= candidates[0][1]]


def _trunks(names: StateDict, total: int) -> list[str]:
    """Prefixes that hold at least half of ``total`` tensors, the shortest first."""
    counts = Counter(prefix for prefix, _ in _cuts(names))
    trunks = [p for p, count in counts.items() if 2 * count >= total and not of_an_optimizer(p)]
    return sorted(trunks, key=len)[:_MOST]


def _fit(state: StateDict, model_state: StateDict) -> tuple[int, int]:
    """How many of the model's tensors ``state`` holds with a fitting shape, and with any shape."""
    common = [name for name in model_state if name in state and not name.endswith("num_batches_tracked")]
    matches = sum(state[name].shape == model_state[name].shape or _is_resampled(name) for name in common)
    return matches, len(common)


def _converted_fit(
    names: StateDict, prefix: str, model_state: StateDict, convert: Callable[[StateDict], StateDict]
) -> tuple[int, int]:
    """As :func:`_fit` after ``convert``; (0, 0) if that fails."""
    try:
        return _fit(convert(below(names, prefix)), model_state)
    except Exception:
        return 0, 0


def _is_resampled(name: str) -> bool:
    """Whether timm resamples a tensor of this name to the model's size."""
    return name == KERNEL or "pos_embed" in name or "relative_position" in name or "rel_pos" in name


def _is_larger(state: StateDict, model_state: StateDict) -> bool:
    """Whether ``state`` holds more of the model's parts than the model has: a deeper network's tensors."""
    parts = {name.partition(".")[0] for name in model_state if "." in name}
    return any(name not in model_state and name.partition(".")[0] in parts for name in state)


def of_an_optimizer(name: str) -> bool:
    """Whether a tensor of this name is an optimizer's, or a gradient."""
    return bool(_words(name) & _NO_WEIGHTS)


def _words(prefix: str) -> set[str]:
    return set(re.split(r"[._]", prefix.lower()))


def _preference(prefix: str) -> tuple[int, str]:
    words = _words(prefix)
    ranks = [rank for rank, group in enumerate(_ORDER) if words & group]
    return (ranks[0] if ranks else 2), prefix


def _same(one: StateDict, other: StateDict) -> bool:
    pairs = [(one[name], other[name]) for name in one.keys() & other.keys()]
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
