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
from gkd_scale.cache.stored import storing
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import decode
from gkd_scale.errors import CacheError, GkdError
from gkd_scale.randomness import generator
from gkd_scale.types import Teacher

TOLERANCE = 0.01
"""Largest relative L2 difference of a sample's tokens, beyond what the codec itself adds."""

_VERSIONS = ("torch", "timm", "transformers")


def rerun(cache: Cache, teacher: Teacher, samples: int, tolerance: float = TOLERANCE) -> Iterator[str]:
    """A line for each of ``samples`` random samples whose tokens are not the teacher's, or is damaged.

    CacheError if the teacher is not the one of the cache (versions aside), or the pixels are not to be found.
    """
    refuse_other_teacher(str(cache.path), cache.fingerprint, teacher)
    pixels = storing(cache)
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
        of_codec = _distance(cache.codec.decode(cache.codec.encode(patches)), patches)
        for name, stored, now, allowed in (
            ("patch tokens", sample.patches, patches, tolerance + 1.5 * of_codec),
            ("CLS", sample.cls, cls, tolerance),
        ):
            if (distance := _distance(stored, now)) > allowed:
                yield (
                    f"v{view:02d}: {sample.sid}: {name} differ from the teacher's by {distance:.3g} "
                    f"(relative L2; at most {allowed:.3g})"
                )


def refuse_other_teacher(cache: str, stored: Mapping[str, Any], teacher: Teacher) -> None:
    """CacheError that names what differs between a teacher and the fingerprint that ``cache`` has stored."""
    now = teacher.fingerprint()
    changed = [
        key for key in sorted({*now, *stored}) if key not in _VERSIONS and now.get(key) != stored.get(key)
    ]
    if changed:
        shown = "; ".join(f"{key}: {stored.get(key)} in the cache, {now.get(key)} here" for key in changed)
        raise CacheError(f"{cache} was made by another teacher ({shown})", "give the same --teacher-weights")


def _distance(stored: np.ndarray[tuple[int, ...], np.dtype[np.float16]], now: Float32) -> float:
    """Relative L2 distance of two arrays of one shape."""
    size = float(np.linalg.norm(now))
    return float(np.linalg.norm(stored.astype(np.float32) - now)) / max(size, 1e-12)
