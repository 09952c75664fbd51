"""The teacher that a run's student learned from, and what stage 1 trained to compare the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from gkd_scale.cache.rerun import refuse_other_teacher
from gkd_scale.cache.spec import digest, read_spec
from gkd_scale.distill import heads
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.documents import read_yaml
from gkd_scale.errors import GkdError, RunError
from gkd_scale.models import backbone
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.tokens import resample_tokens
from gkd_scale.report.runs import Phase, Run, is_cache
from gkd_scale.types import Grid, LiveTeacher, Size, UInt8Array


@dataclass(frozen=True)
class TaughtBy:
    """A teacher beside the head by which its student was compared with it.

    Tokens are on the teacher's grid of N tokens and in its conditioned space of Ct channels.
    """

    teacher: LiveTeacher
    conditioning: Conditioning
    head: QsdHead

    @property
    def attends(self) -> bool:
        """Whether stage 1 gathered by attention (QSD) or compared token by token (MSE)."""
        return self.head.attend

    def tokens(self, image: UInt8Array) -> Tensor:
        """The teacher's patch tokens (N, Ct) of a whole image (H, W, 3) at the size that the cache had."""
        features = self.teacher(whole(image, self.teacher.image_size)[None])
        return self.conditioning(features).patches[0]

    def on_grid(self, student: Tensor, grid: Grid) -> Tensor:
        """The student's patch tokens (n, Cs) of its ``grid`` on the teacher's grid: (N, Cs)."""
        return resample_tokens(student[None].float(), grid, self.teacher.grid)[0]

    def estimate(self, student: Tensor) -> Tensor:
        """ψ(v_s): the student's estimate (N, Ct) of the teacher's tokens, from its own (N, Cs)."""
        values: Tensor = self.head.proj_v(student)
        return values

    def attention(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The weight of each teacher token (columns) for each student token (rows): (N, N), 0 to 1.

        QSD's attention weights; after plain MSE the cosine similarity of ψ(v_s) and v_t, negative ones as 0.
        """
        if self.attends:
            return self.head.attention(student[None], teacher[None])[0]
        mine, theirs = (F.normalize(tokens, dim=1) for tokens in (self.estimate(student), teacher))
        return (mine @ theirs.T).clamp(0, 1)


def taught_by(run: Run, weights: Path | None, device: str) -> TaughtBy | str | None:
    """The teacher of a run's last stage 1; None if it had none, a reason if it cannot be had here."""
    phase = next((candidate for candidate in reversed(run.phases) if candidate.stage == 1), None)
    if phase is None:
        return None
    try:
        return _load(phase, weights, device)
    except (GkdError, OSError) as error:
        return error.message if isinstance(error, GkdError) else str(error)


def _load(phase: Phase, weights: Path | None, device: str) -> TaughtBy:
    """The first teacher whose cache is here and whose weights can be had, with its head and conditioning."""
    digests = _fingerprints(phase.folder)
    local = [Path(location) for location in phase.data() if is_cache(location)]
    caches = [location for location in local if not digests or digest(read_spec(location).teacher) in digests]
    if not caches:
        raise RunError(f"the cache that {phase.folder} was trained from is not here", "keep caches in place")
    failures = []
    for cache in caches:
        result = _attempt(partial(_of_cache, phase, cache, digests, weights, device))
        if isinstance(result, TaughtBy):
            return result
        failures.append(result)
    raise failures[0]


def _attempt(load: Callable[[], TaughtBy]) -> TaughtBy | GkdError | OSError:
    """What ``load`` returns, or why it failed."""
    try:
        return load()
    except (GkdError, OSError) as error:
        return error


def _of_cache(phase: Phase, cache: Path, digests: list[str], weights: Path | None, device: str) -> TaughtBy:
    """The teacher of ``cache``; ``digests`` are those of all teachers of the run, if it had several."""
    spec = read_spec(cache)
    number = digests.index(digest(spec.teacher)) if digests else 0
    prefix = conditionings.prefixes(max(1, len(digests)))[number]
    scaled = (phase.config.get("qsd") or {}).get("scale") == "sqrt"
    head = heads.feature_head(phase.folder, scaled=scaled, teacher=prefix)
    if head is None:
        raise RunError(f"{phase.folder} has no head that compares tokens", "its objective has none")
    teacher = load_teacher(TeacherConfig.of_fingerprint(spec.teacher, weights), spec.image_size, device)
    refuse_other_teacher(str(cache), spec.teacher, teacher)
    norm = str(phase.config.get("teacher_norm") or "none")
    conditioning = conditionings.load(phase.folder, prefix=prefix)
    return TaughtBy(teacher, conditioning or Conditioning(norm if norm == "layer" else "none"), head)


def _fingerprints(folder: Path) -> list[str]:
    """Digests of the teachers' fingerprints if the run's caches are of several; else empty."""
    path = folder / backbone.CARD_FILE
    return list((read_yaml(path) if path.is_file() else {}).get("teacher_fingerprint") or [])


def whole(image: UInt8Array, size: Size) -> Tensor:
    """All of an image (H, W, 3) at exactly ``size``, whatever its aspect: (3, *size) uint8."""
    return T.resize(torch.from_numpy(np.array(image)).permute(2, 0, 1), list(size), antialias=True)
