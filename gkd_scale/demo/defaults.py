"""The data that the launchers use by default: the embedded scenes and a cache of them, in ``runs/``.

What makes them is imported when it is needed: a launch with its own data does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gkd_scale import console, files
from gkd_scale.cache.config import CacheTeacherConfig, parse_size
from gkd_scale.demo.config import MakeDataConfig
from gkd_scale.errors import DataError

DATA = Path("runs/demo-data")
PROXY_CACHE = Path("runs/demo-cache/proxy")


def make_data(cfg: MakeDataConfig) -> None:
    """``gkd-scale make-data``: write the missing files of the embedded scenes, with progress."""
    from gkd_scale.scenes.make_data import write_data

    busy = f"another process is writing {cfg.out}: waiting for it"
    with files.claim(cfg.out, DataError, lambda: console.say(busy)), console.progress() as bar:
        task = bar.add_task("make-data", total=None)
        manifest = write_data(
            cfg.out,
            size=parse_size(cfg.size),
            proxy=cfg.proxy,
            train=cfg.train,
            val=cfg.val,
            test=cfg.test,
            seed=cfg.seed,
            progress=lambda number, total: bar.update(task, completed=number, total=total),
        )
    counts = ", ".join(f"{count} {name}" for name, count in manifest["counts"].items())
    console.out.print(f"{cfg.out}: {counts}", markup=False)


def data() -> Path:
    """The folder of the embedded scenes; writes missing files."""
    make_data(MakeDataConfig(DATA))
    return DATA


def proxy_recipe(*, make: bool = True) -> dict[str, Any]:
    """The proxy images and their size, for a cache or a live teacher; writes missing ones if ``make``."""
    return {"images": str((data() if make else DATA) / "proxy"), "image_size": "96x128"}


def proxy_cache(*, make: bool = True) -> Path:
    """The demo teacher's cache of the embedded proxy images; builds it if it is missing and ``make``."""
    if make:
        from gkd_scale.cache.build import build
        from gkd_scale.models.registry import load_teacher

        cfg = CacheTeacherConfig(**proxy_recipe(), views=2, out=PROXY_CACHE)
        build(cfg, load_teacher(cfg.teacher, cfg.size))
    return PROXY_CACHE
