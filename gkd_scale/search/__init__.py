"""Hyperparameter search for stage 1 with Ray Tune; ``tuning/search.py`` starts it.

:mod:`.config` and :mod:`.space` read what to search. :mod:`.checks` refuses what cannot work, before Ray
starts. :mod:`.search` is the whole run: :mod:`.tuner` lets Tune run trials, each of which (:mod:`.trial`) is
a stage-1 run; :mod:`.summary` writes the best configuration, and :mod:`.final` trains it. Only this package
imports ray.tune.
"""
