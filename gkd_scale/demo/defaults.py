"""What the launchers use when nothing is named: the embedded data and a cache of it, under ``runs/``."""

from __future__ import annotations

from pathlib import Path

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.models.teachers import load_teacher

DATA = Path("runs/demo-data")
PROXY_CACHE = Path("runs/demo-cache/proxy")


def data() -> Path:
    """The embedded scenes, written if they are not there."""
    from gkd_scale.segment.datasets.make_data import write_data

    write_data(DATA)
    return DATA


def proxy_cache() -> Path:
    """The demo teacher's cache of the embedded proxy images, built if it is not there."""
    cfg = CacheTeacherConfig(images=data() / "proxy", image_size="96x128", views=2, out=PROXY_CACHE)
    build(cfg, load_teacher(cfg.teacher, cfg.size))
    return PROXY_CACHE
