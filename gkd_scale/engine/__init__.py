"""The training engine: the only package that imports DeepSpeed.

:mod:`launch` is what a launcher script calls; :mod:`runtime` knows rank and world; :mod:`ds_config`
reads the DeepSpeed JSON; :mod:`loop` trains any module that returns a dict of losses;
:mod:`checkpoint` keeps whole checkpoints that any world size and ZeRO stage can read.
"""
