"""gkd-scale: giant vision foundation models distilled into small models that generalise.

In Python::

    import gkd_scale
    backbone = gkd_scale.load_backbone("runs/1b")        # pixels (B, 3, H, W) 0..255 to four feature maps
    segmenter = gkd_scale.load_segmenter("runs/stage2")  # segmenter.predict("street.jpg") to classes (H, W)
    cache = gkd_scale.Cache.open("caches/proxy")         # a torch dataset of pixels and a teacher's tokens

and the commands as functions: ``cache_teacher``, ``distill``, ``train_head``, ``evaluate``.

The package is read from the bottom up: :mod:`errors`, :mod:`types` and :mod:`config` are shared by
all; :mod:`cache` writes and reads teacher features; :mod:`models` wraps timm; :mod:`engine` wraps
DeepSpeed; :mod:`distill` is stage 1; :mod:`segment` is stage 2 and evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_scale.api import cache_teacher as cache_teacher
    from gkd_scale.api import distill as distill
    from gkd_scale.api import evaluate as evaluate
    from gkd_scale.api import train_head as train_head
    from gkd_scale.cache.reader import Cache as Cache
    from gkd_scale.distill.qsd import QsdHead as QsdHead
    from gkd_scale.distill.qsd import QsdLoss as QsdLoss
    from gkd_scale.models.backbone import load_backbone as load_backbone
    from gkd_scale.segment.finished import load_segmenter as load_segmenter

__version__ = "0.1.0"

_PLACES = {
    "Cache": "gkd_scale.cache.reader",
    "QsdHead": "gkd_scale.distill.qsd",
    "QsdLoss": "gkd_scale.distill.qsd",
    "cache_teacher": "gkd_scale.api",
    "distill": "gkd_scale.api",
    "evaluate": "gkd_scale.api",
    "load_backbone": "gkd_scale.models.backbone",
    "load_segmenter": "gkd_scale.segment.finished",
    "train_head": "gkd_scale.api",
}
__all__ = [
    "Cache",
    "QsdHead",
    "QsdLoss",
    "__version__",
    "cache_teacher",
    "distill",
    "evaluate",
    "load_backbone",
    "load_segmenter",
    "train_head",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import gkd_scale`` alone loads no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'gkd_scale' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
