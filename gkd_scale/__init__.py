"""gkd-scale: giant vision foundation models distilled into small models that generalise.

The package is read from the bottom up: :mod:`errors`, :mod:`types` and :mod:`config` are shared by
all; :mod:`cache` writes and reads teacher features; :mod:`models` wraps timm; :mod:`engine` wraps
DeepSpeed; :mod:`distill` is stage 1; :mod:`segment` is stage 2 and evaluation.
"""

__version__ = "0.1.0"
