"""Conditioning of a teacher's tokens: the space in which a student is compared with its teacher.

The tokens of foundation models share a large mean, and a few loud directions hold most of their variance. A
squared error on raw tokens pays for those, and the quiet directions, which tell classes apart, are lost.
Every form below but ``none`` and ``layer`` is an affine map y = A (x - μ), one for the patch tokens and one
for the CLS token, from the mean μ and the covariance Σ = U Λ Uᵀ of the teacher's own tokens:

    none      y = x
    layer     y = (x - mean) / std over the channels of each token
    standard  A = diag(Σ)^(-1/2): every channel has mean 0 and variance 1
    whiten    A = s U (Λ + ε max Λ)^(-p/2) Uᵀ: with p = 1 all directions are equally loud, with p = 1/2 (the
              default) they keep the square root of their loudness; ε = 1e-3 holds down what is only noise;
              s makes the mean variance 1
    phi-s     A = H Uᵀ / sqrt(mean Λ), H a normalised Hadamard matrix: one scale for all channels, after a
              rotation that gives each the same variance (PHI-S, Ranzinger et al., arXiv 2410.01680)

Shapes: B images, N tokens, C channels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.errors import ModelError
from gkd_scale.models.config import TEACHER_NORMS, ConditioningConfig
from gkd_scale.models.tensor_files import write_tensors
from gkd_scale.moments import Moments
from gkd_scale.types import Features

FILE = "conditioning.safetensors"
"""Written beside an exported backbone: what undoes the conditioning of its projected tokens."""
AFFINE = TEACHER_NORMS[2:]
"""The forms that need the moments of the teacher's tokens."""
SHRINK = 1e-3
"""ε of ``whiten``."""
SAMPLES = 512
"""Images whose tokens give the moments."""


@dataclass(frozen=True)
class Affine:
    """y = A (x - shift): ``shift`` (C,) and ``matrix`` A (C, C), float32."""

    shift: Tensor
    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C), float32."""
        return (x.float() - self.shift) @ self.matrix.T

    def undo(self, y: Tensor) -> Tensor:
        """The x that gives ``y`` (..., C), float32."""
        delta = torch.linalg.solve(self.matrix.double(), y.double().flatten(0, -2).T).T
        return (delta + self.shift).view_as(y).float()


class Conditioning(nn.Module):
    """Features to conditioned features, float32, on the device that the module is on.

    ``patch`` and ``cls`` are None if ``norm`` is no affine form. Nothing is trained or in the state dict.
    """

    def __init__(self, norm: str = "none", patch: Affine | None = None, cls: Affine | None = None) -> None:
        super().__init__()
        assert (norm in AFFINE) == (patch is not None) == (cls is not None), norm
        self.norm = norm
        for name, affine in (("patch", patch), ("cls", cls)):
            if affine is not None:
                self.register_buffer(f"{name}_shift", affine.shift.float(), persistent=False)
                self.register_buffer(f"{name}_matrix", affine.matrix.float(), persistent=False)

    def affine(self, part: str) -> Affine:
        """The map of ``part``, ``patch`` or ``cls``; of an affine form only."""
        return Affine(getattr(self, f"{part}_shift"), getattr(self, f"{part}_matrix"))

    def forward(self, features: Features) -> Features:
        """CLS (B, C) and patches (B, N, C), conditioned."""
        if self.norm == "none":
            return Features(*(tensor.float() for tensor in features))
        if self.norm == "layer":
            return Features(*(F.layer_norm(tensor.float(), tensor.shape[-1:]) for tensor in features))
        return Features(self.affine("cls")(features.cls), self.affine("patch")(features.patches))

    def tensors(self) -> dict[str, Tensor]:
        """Shift and matrix by name (``patch_shift``, ...), on the CPU; empty if the form is not affine."""
        return {name: value.detach().cpu() for name, value in self.named_buffers()}

    def digest(self) -> str:
        """SHA-256 over the form and its tensors: part of a run's identity."""
        digest = hashlib.sha256(self.norm.encode())
        for _, value in sorted(self.tensors().items()):
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path, of: str = "") -> None:
        """Write ``conditioning.safetensors`` to ``folder``; ``of`` says what it was fitted to."""
        save([self], folder, of)


def save(conditionings: Sequence[Conditioning], folder: Path, of: str = "") -> None:
    """Write the conditionings of a run's teachers, all of one form, to one file as :meth:`Conditioning.save`.

    Those of several teachers have the prefix ``teachers.NUMBER.`` before the names of their tensors.
    """
    tensors = {
        prefix + name: value
        for prefix, conditioning in zip(prefixes(len(conditionings)), conditionings, strict=True)
        for name, value in conditioning.tensors().items()
    }
    (norm,) = {conditioning.norm for conditioning in conditionings}
    write_tensors(folder / FILE, tensors, norm=norm, of=of)


def prefixes(teachers: int) -> list[str]:
    """What a run's files put before the names of each teacher's tensors: nothing for a single one."""
    return [""] if teachers == 1 else [f"teachers.{number}." for number in range(teachers)]


def load(folder: Path, of: str | None = None, prefix: str = "") -> Conditioning | None:
    """What :func:`save` wrote to ``folder``; None if there is none, or none fitted to ``of``.

    ``prefix`` of :func:`prefixes` says which teacher's. Raises ModelError if the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if of is not None and metadata.get("of") != of:
            return None
        norm = metadata.get("norm", "")
        if norm not in TEACHER_NORMS:
            raise KeyError(norm)
        parts = ("patch", "cls") if norm in AFFINE else ()
        maps = [Affine(tensors[f"{prefix}{part}_shift"], tensors[f"{prefix}{part}_matrix"]) for part in parts]
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "run stage 1 again in another --out") from None
    return Conditioning(norm, *maps)


def key(options: ConditioningConfig, **of: Any) -> str:
    """The digest of what decides a conditioning: its options, and what it is fitted to, JSON types."""
    facts = {"norm": options.norm, "power": options.power, **of}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_or_make(folder: Path, of: str, make: Callable[[], Conditioning], prefix: str = "") -> Conditioning:
    """The conditioning saved in ``folder`` if it was fitted to ``of``, else what ``make`` returns.

    So a resumed run has the very numbers that it started with. ``prefix`` is that of :func:`load`.
    """
    return load(folder, of, prefix) or make()


def fit(batches: Iterable[Features], norm: str, power: float = 0.5) -> Conditioning:
    """The conditioning ``norm`` from the moments of features, on the CPU; they are not read if it needs none.

    Raises ModelError as :func:`affine` does.
    """
    if norm not in AFFINE:
        return Conditioning(norm)
    both: list[Moments] = []
    for features in batches:
        both = both or [Moments(features.cls.shape[-1]) for _ in ("patch", "cls")]
        for moments, tokens in zip(both, (features.patches.flatten(0, 1), features.cls), strict=True):
            moments.update(tokens.float().cpu().numpy())
    assert both, "moments of nothing"
    maps = [affine(norm, torch.from_numpy(m.mean), torch.from_numpy(m.covariance), power) for m in both]
    return Conditioning(norm, *maps)


def affine(norm: str, mean: Tensor, covariance: Tensor, power: float = 0.5) -> Affine:
    """The map of an affine form for tokens of ``mean`` (C,) and ``covariance`` (C, C), float64.

    ``power`` is p of ``whiten``, 0 to 1. ModelError for ``phi-s`` if :func:`hadamard` knows no matrix of
    order C.
    """
    mean, covariance = mean.double(), covariance.double()
    variance = covariance.diagonal().clamp_min(0)
    if norm == "standard":
        tiny = 1e-6 * float(variance.max().sqrt())
        matrix = torch.diag(1 / variance.sqrt().clamp_min(max(tiny, 1e-12)))
    else:
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        if norm == "whiten":
            eigenvalues = (values + SHRINK * values.max()).clamp_min(1e-24)
            matrix = (vectors * eigenvalues ** (-power / 2)) @ vectors.T
            out = (matrix @ covariance @ matrix.T).diagonal().mean()
            matrix = matrix / out.sqrt().clamp_min(1e-12)  # the other forms have this scale already
        else:
            matrix = hadamard(len(mean)).double() @ _orient(vectors).T / values.mean().sqrt().clamp_min(1e-12)
    return Affine(mean.float(), matrix.float())


def _orient(vectors: Tensor) -> Tensor:
    """Eigenvectors (columns) with their largest entry positive: which sign eigh gives is arbitrary."""
    largest = vectors.abs().argmax(0)
    return vectors * vectors.gather(0, largest[None]).sign()


def hadamard(order: int) -> Tensor:
    """An orthogonal matrix (order, order) with entries ±1/√order; ModelError if none is known here.

    Sylvester's doubling of Paley's first construction: orders 2^k (q + 1) for primes q = 3 mod 4. It has the
    widths of common teachers (96, 192, 320, 384, 768, 1024, 1152, 1280, 1408, 1536, 4096).
    """
    doublings, base = 0, order
    while base > 1 and not _paley_order(base):
        if base % 2:
            raise ModelError(
                f"phi-s needs a Hadamard matrix, and none of order {order} is known here",
                "take --teacher-norm whiten or standard",
            )
        doublings, base = doublings + 1, base // 2
    matrix = torch.ones(1, 1) if base == 1 else _paley(base - 1)
    for _ in range(doublings):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(order)


def _paley_order(order: int) -> bool:
    q = order - 1
    return q % 4 == 3 and all(q % factor for factor in range(2, math.isqrt(q) + 1))


def _paley(q: int) -> Tensor:
    """Paley's first construction, of order q + 1, for a prime q = 3 mod 4."""
    squares = torch.zeros(q, dtype=torch.bool)
    squares[torch.arange(1, q) ** 2 % q] = True
    difference = (torch.arange(q)[:, None] - torch.arange(q)[None, :]) % q
    jacobsthal = torch.where(squares[difference], 1.0, -1.0)
    jacobsthal.fill_diagonal_(0.0)
    skew = torch.zeros(q + 1, q + 1)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1.0, -1.0, jacobsthal
    return skew + torch.eye(q + 1)
