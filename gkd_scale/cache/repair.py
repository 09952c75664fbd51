"""``repair``: rebuild only what is bad.

Everything is read and compared with its checksums, as ``verify`` does; shards with damage are dropped, and
the build that made the cache goes on, with the spec that the cache itself holds. The user adds what
no cache holds: the paths of the images and of the teacher's weights. The mended cache has the bytes that it
had when it was whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gkd_scale.cache.build import build, make_spec, plan_of
from gkd_scale.cache.config import CacheTeacherConfig, RepairConfig, ViewConfig
from gkd_scale.cache.folder import refuse_changed
from gkd_scale.cache.location import is_stored
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.shard import index_path, tar_path
from gkd_scale.cache.source import Source
from gkd_scale.cache.spec import Spec
from gkd_scale.cache.verify import damaged_shards
from gkd_scale.config import build as build_config
from gkd_scale.errors import CacheError
from gkd_scale.files import claim
from gkd_scale.models.config import DemoTeacherConfig
from gkd_scale.types import Teacher


def repair(
    cfg: RepairConfig,
    spec: Spec,
    teacher: Teacher,
    report: Callable[[str], None],
    *,
    source: Source | None = None,
    quiet: bool = False,
) -> BuildReport:
    """Mend the cache ``cfg.cache`` of ``spec``; each damage in a shard goes to ``report`` as a line.

    ``source`` reads ``cfg.images`` if they are a labelled dataset.

    CacheError if images or teacher are not those of the cache; then nothing is removed.
    """
    if spec.pixels_of is not None and not is_stored(cfg.images):
        raise CacheError(
            f"{cfg.cache} is made of the pixels of a cache (manifest sha256 {spec.pixels_of}), not of images",
            f"give --images {spec.images_flag}",
        )
    recipe = recipe_of(spec, cfg)
    refuse_other_source(recipe, spec, teacher, source)
    with claim(cfg.cache, CacheError):
        for (view, shard), lines in damaged_shards(cfg.cache, quiet=quiet).items():
            for line in lines:
                report(line)
            index_path(cfg.cache, view, shard).unlink(missing_ok=True)
            tar_path(cfg.cache, view, shard).unlink(missing_ok=True)
    return build(recipe, teacher, source=source, quiet=quiet)


def recipe_of(spec: Spec, cfg: RepairConfig) -> CacheTeacherConfig:
    """The options of the cache-teacher command that makes a cache of ``spec``."""
    return CacheTeacherConfig(
        images=cfg.images,
        image_size=f"{spec.image_size[0]}x{spec.image_size[1]}",
        out=cfg.cache,
        teacher=DemoTeacherConfig.of_fingerprint(spec.teacher),
        views=spec.views,
        codec=spec.codec,
        codec_fit=cfg.codec_fit,
        samples_per_shard=spec.samples_per_shard,
        batch_size=cfg.batch_size,
        workers=cfg.workers,
        device=cfg.device,
        seed=spec.seed,
        view=build_config(ViewConfig, spec.view),
    )


def refuse_other_source(
    recipe: CacheTeacherConfig, spec: Spec, teacher: Teacher, source: Source | None = None
) -> None:
    """CacheError if the images or the teacher are not those of the cache."""
    plan = plan_of(recipe, source, spec.format)
    new = replace(make_spec(recipe, teacher, plan), codec_state=spec.codec_state)
    refuse_changed(recipe.out, spec, new, plan)
