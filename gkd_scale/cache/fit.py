"""The codec of a build: one that needs no fit, the one that the cache was begun with, or a new fit."""

from __future__ import annotations

import contextlib
from itertools import islice

import numpy as np

from gkd_scale.cache.codecs.base import STATE, Codec
from gkd_scale.cache.codecs.registry import fit_codec, get_codec, is_fitted, load_codec
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.plan import ImagePlan
from gkd_scale.cache.spec import read_spec
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import MadeView, views_of
from gkd_scale.errors import CacheError, DamageError, DataError
from gkd_scale.moments import Moments
from gkd_scale.types import Teacher


def codec_for(cfg: CacheTeacherConfig, teacher: Teacher, plan: ImagePlan) -> Codec:
    """The codec ``cfg.codec``. One that must be fitted comes from the folder ``cfg.out`` if that has it."""
    if not is_fitted(cfg.codec):
        return get_codec(cfg.codec)
    with contextlib.suppress(OSError, CacheError, DamageError):
        spec = read_spec(cfg.out)
        if spec.codec == cfg.codec:
            return load_codec(spec.codec, (cfg.out / STATE).read_bytes(), spec.codec_state)
    return _fit(cfg, teacher, plan)


def _fit(cfg: CacheTeacherConfig, teacher: Teacher, plan: ImagePlan) -> Codec:
    """The codec for the patch tokens of ``cfg.codec_fit`` images of the plan, evenly spaced, view 0.

    A function of the images, the teacher and the batch size. DataError if no image can be read.
    """
    entries = plan.spread(cfg.codec_fit)
    views = views_of(cfg, plan, ((entry, 0) for entry in entries))
    moments = Moments(teacher.dim)
    whole = (view for view in views if isinstance(view, MadeView))
    while batch := list(islice(whole, cfg.batch_size)):
        tokens = run_teacher(teacher, np.stack([view.pixels for view in batch])).patches.numpy()
        moments.update(tokens.reshape(-1, teacher.dim))
    if not moments.count:
        raise DataError(f"none of {len(entries)} images of {cfg.images} could be read", "check --images")
    return fit_codec(cfg.codec, moments.mean, moments.covariance)
