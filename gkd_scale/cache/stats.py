"""``stats``: mean, covariance and norm of a cache's tokens, in one pass.

``stats.safetensors`` in the cache holds, for ``patch`` and ``cls``: ``mean`` (C,), ``std`` (C,),
``covariance`` (C, C) and ``norm`` (mean, least, largest), float32. They serve as teacher normalisation and
to fit PCA. Like a certificate the file is not part of the manifest's chain; its metadata names the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from gkd_scale import console
from gkd_scale.cache.config import StatsConfig, default_workers
from gkd_scale.cache.reader import Cache
from gkd_scale.files import write_bytes
from gkd_scale.moments import Moments
from gkd_scale.prefetch import prefetch

STATS = "stats.safetensors"


@dataclass(frozen=True)
class Stats:
    """Moments of the patch tokens and of the CLS tokens of all views."""

    patch: Moments
    cls: Moments

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        lines = []
        for name, moments in (("patch", self.patch), ("cls", self.cls)):
            shares = moments.shares()
            counts = ", ".join(
                f"{share:.0%} in {int(np.searchsorted(shares, share)) + 1}" for share in (0.9, 0.95, 0.99)
            )
            std = np.sqrt(np.clip(np.diag(moments.covariance), 0, None))
            lines += [
                f"{name}: {moments.count} tokens of {len(shares)} channels; norm {moments.norm_mean:.4g} "
                f"(from {moments.norm_min:.4g} to {moments.norm_max:.4g})",
                f"  channel std: median {np.median(std):.4g}, largest {std.max():.4g}; "
                f"variance in principal components: {counts}",
            ]
        return lines


def main(cfg: StatsConfig) -> None:
    """``gkd-scale stats``: measure a cache, write the file and print the summary."""
    cache = Cache.open(cfg.cache)
    stats = measure(cache)
    out = cfg.out or cfg.cache / STATS
    write_stats(out, stats, cache.spec.hash())
    console.say(*stats.lines(), f"written to {out}")


def measure(cache: Cache, *, quiet: bool = False) -> Stats:
    """One pass over all views; DamageError at the first damaged sample."""
    stats = Stats(Moments(cache.dim), Moments(cache.dim))
    places = list(product(range(cache.views), range(cache.num_samples)))
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("stats", total=len(places))
        for sample in prefetch(lambda place: cache.read(*place), places, min(2, default_workers()), 8):
            stats.patch.update(sample.patches)
            stats.cls.update(sample.cls[None])
            bar.advance(task)
    return stats


def write_stats(path: Path, stats: Stats, spec: str) -> None:
    """Write ``stats.safetensors``; ``spec`` is the hash of the cache's spec."""
    from safetensors.numpy import save

    tensors = {}
    for name, moments in (("patch", stats.patch), ("cls", stats.cls)):
        tensors[f"{name}.mean"] = moments.mean.astype(np.float32)
        tensors[f"{name}.covariance"] = moments.covariance.astype(np.float32)
        tensors[f"{name}.std"] = np.sqrt(np.clip(np.diag(moments.covariance), 0, None)).astype(np.float32)
        norms = [moments.norm_mean, moments.norm_min, moments.norm_max]
        tensors[f"{name}.norm"] = np.array(norms, np.float32)
    write_bytes(path, save(tensors, metadata={"spec": spec}))
