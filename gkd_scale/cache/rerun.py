"""``verify --rerun-teacher K``: do the tokens belong to the pixels?

Checksums say that bytes are as they were written, not that what was written is right. Here the teacher
sees some stored views again, and its tokens are compared with the stored ones. Another machine or library
version moves the tokens by rounding; another teacher, another crop or a mix-up of samples moves them far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gkd_scale.cache.codecs.base import Float32
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.stored import pixel_cache
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import decode
from gkd_scale.errors import CacheError, GkdError
from gkd_scale.randomness import generator
from gkd_scale.types import Teacher

TOLERANCE = 0.01
"""Largest relative L2 difference of a sample's tokens, beyond what the codec itself adds."""

_VERSIONS = ("torch", "timm", "transformers")


def rerun(cache: Cache, teacher: Teacher, samples: int, tolerance: float = TOLERANCE) -> Iterator[str]:
    """A line for each of ``samples`` random samples that is damaged, or whose tokens are not the teacher's.

    CacheError if the teacher is not the one of the cache (versions aside), or the pixels cannot be found.
    """
    refuse_other_teacher(str(cache.path), cache.fingerprint, teacher)
    pixels = pixel_cache(cache)
    total = cache.views * cache.num_samples
    rng = generator("verify.rerun", cache.spec.hash(), samples)
    for place in sorted(rng.choice(total, min(samples, total), replace=False).tolist()):
        view, index = divmod(place, cache.num_samples)
        try:
            sample, jpeg = cache.read(view, index), pixels.read_members(view, index, ("jpg",))["jpg"]
        except GkdError as error:
            yield error.message
            continue
        features = run_teacher(teacher, decode(jpeg)[None])
        patches, cls = features.patches[0].numpy(), features.cls[0].numpy()
        codec_error = _distance(cache.codec.decode(cache.codec.encode(patches)), patches)
        for name, old, new, limit in (
            ("patch tokens", sample.patches, patches, tolerance + 1.5 * codec_error),
            ("CLS", sample.cls, cls, tolerance),
        ):
            if (distance := _distance(old, new)) > limit:
                yield (
                    f"v{view:02d}: {sample.sid}: {name} differ from the teacher's by {distance:.3g} "
                    f"(relative L2; at most {limit:.3g})"
                )


def refuse_other_teacher(cache: str, old: Mapping[str, Any], teacher: Teacher) -> None:
    """CacheError that names the differences of a teacher from ``old``, the fingerprint in ``cache``."""
    new = teacher.fingerprint()
    keys = [key for key in sorted({*new, *old}) if key not in _VERSIONS and new.get(key) != old.get(key)]
    if keys:
        diff = "; ".join(f"{key}: {old.get(key)} in the cache, {new.get(key)} here" for key in keys)
        raise CacheError(f"{cache} was made by another teacher ({diff})", "give the same --teacher-weights")


def _distance(tokens: np.ndarray[tuple[int, ...], np.dtype[np.float16]], reference: Float32) -> float:
    """L2 distance of two arrays of one shape, relative to the norm of ``reference``."""
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(tokens.astype(np.float32) - reference)) / max(norm, 1e-12)
