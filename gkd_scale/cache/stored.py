"""``--images cache:CACHE``: another teacher sees the pixels that a cache stores.

Plan, names, views and shards are that cache's, and so are the images that could not be read. The new cache
holds tokens only: its samples are those of the other one, row by row, and its spec names the manifest of
the cache that stores the pixels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from gkd_scale.cache.config import CacheTeacherConfig, ViewConfig
from gkd_scale.cache.location import SCHEME, is_stored, is_url, url_of
from gkd_scale.cache.manifest import MANIFEST
from gkd_scale.cache.plan import PLAN, ImagePlan, numbers_of, read_plan
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.rows import Rows
from gkd_scale.cache.source import StoredView
from gkd_scale.config import build, explicit_keys
from gkd_scale.errors import CacheError, ConfigError

C = TypeVar("C", bound=CacheTeacherConfig)


class StoredViews:
    """The views of a cache by the names of their images; a ViewSource. DamageError for damaged ones."""

    def __init__(self, cache: Cache, place: str) -> None:
        self.cache, self._place = cache, place
        sids, readable, self._reasons = [], [], dict[str, str]()
        for table in Rows(cache.sound_file(MANIFEST), ["sid", "error"]).tables():
            sids.append(numbers_of(table))
            readable.append(pc.is_null(table["error"]).to_numpy())
            errors = table.filter(pc.is_valid(table["error"]))
            self._reasons |= zip(errors["sid"].to_pylist(), errors["error"].to_pylist(), strict=True)
        places = np.cumsum(np.concatenate(readable)) - 1
        order = np.argsort(all_sids := np.concatenate(sids))
        self._sids, self._places = all_sids[order], places[order]

    @property
    def origin(self) -> dict[str, str]:
        """The ``pixels`` in the spec of a cache that is made of these views."""
        return {"manifest": self.cache.manifest, "path": self._place}

    def view(self, sid: str, view: int) -> StoredView | str:
        """The stored view ``view`` of one image; or why the image could not be read."""
        if (reason := self._reasons.get(sid)) is not None:
            return reason
        place = self._places[self._sids.searchsorted(np.uint64(int(sid, 16)))]
        members = self.cache.read_members(view, int(place), ("jpg", "json"))
        facts = json.loads(bytes(members["json"]))
        assert facts["sid"] == sid, "the manifest says where the sample is"
        return StoredView(members["jpg"], facts)

    def plan(self) -> ImagePlan:
        """The plan of the cache, whose views are these."""
        return replace(read_plan(self.cache.sound_file(PLAN), self.cache.spec), view_source=self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the cache anew, and refuses one that has changed."""
        return partial(_reopen, self._place, self.cache.manifest), ()


def open_stored(images: str | Path) -> StoredViews:
    """The views of the cache that ``cache:CACHE`` names. CacheError if it is unfinished or holds none."""
    place, cache = _open(images)
    return StoredViews(cache, place)


def pixel_cache(cache: Cache) -> Cache:
    """The cache that stores the pixels of ``cache``: itself, or the one that its spec names.

    CacheError if that is not where it was, or has changed.
    """
    manifest = cache.spec.pixels_of
    if manifest is None:
        return cache
    place = cache.spec.pixels["path"]
    with contextlib.suppress(CacheError):
        other = Cache.open(place)
        if other.manifest == manifest:
            return other
    raise cache.without_pixels(f"put that cache back at {place}")


def _reopen(place: str, manifest: str) -> StoredViews:
    cache = Cache.open(place)
    if cache.manifest != manifest:
        raise CacheError(f"the cache {place} changed during the build", "run the same command again")
    return StoredViews(cache, place)


def _open(images: str | Path) -> tuple[str, Cache]:
    """The URL or absolute path of the cache that ``cache:CACHE`` names, and the cache."""
    place = str(images).removeprefix(SCHEME)
    if not place:
        raise ConfigError(f"--images {images} names no cache", f"give --images {SCHEME}CACHE")
    place = url_of(place) if is_url(place) else str(Path(place).expanduser().absolute())
    cache = Cache.open(place)
    cache.require_pixels(f"give --images {cache.spec.images_flag}")
    return place, cache


# ------------------------------------------------------------------------------------ its options


def follow(cfg: C) -> C:
    """``cfg`` with the image size, the views and the shards of the cache whose pixels are its images.

    ``cfg`` itself if its images are no cache. ConfigError for an option that was given another value.
    """
    if not is_stored(cfg.images):
        return cfg
    place, cache = _open(cfg.images)
    spec = cache.spec
    result = replace(
        cfg,
        image_size="x".join(map(str, spec.image_size)),
        views=spec.views,
        seed=spec.seed,
        samples_per_shard=spec.samples_per_shard,
        view=build(ViewConfig, spec.view),
    )
    default = dict(_leaves(CacheTeacherConfig(SCHEME, Path())))
    wrong = [
        f"{key} {theirs}, not {mine}"
        for (key, mine), (_, theirs) in zip(_leaves(cfg), _leaves(result), strict=True)
        if mine != theirs and mine is not None and (key in explicit_keys(cfg) or mine != default[key])
    ]
    if wrong:
        raise ConfigError(f"the cache {place} has {'; '.join(wrong)}", "leave out what the cache decides")
    return result


def _leaves(cfg: CacheTeacherConfig) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the options that a cache decides for those made of its pixels."""
    yield "image_size", cfg.image_size and "x".join(map(str, cfg.size))
    for key in ("views", "seed", "samples_per_shard"):
        yield key, getattr(cfg, key)
    for key, value in asdict(cfg.view).items():
        yield f"view.{key}", value
