"""The training engine: the only package that imports DeepSpeed.

:mod:`launch` is what a launcher script calls; :mod:`runtime` knows rank and world; :mod:`ds_config`
reads the DeepSpeed JSON; :mod:`loop` trains any modules that return a dict of losses;
:mod:`checkpoint` keeps whole checkpoints that any world size and ZeRO stage can read; :mod:`stop` turns
signals into requests; :mod:`health` watches; :mod:`feed` copies batches to the device ahead of their step;
:mod:`dry_run` measures what a run would take.
"""
