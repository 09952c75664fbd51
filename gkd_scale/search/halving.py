"""ASHA and HyperBand that outlive a restart: Tune restores trials and the search algorithm, but starts
schedulers anew.

ASHA without its rungs would compare new trials with nobody and stop none. So it fills the rungs again from
``trials.parquet`` as Tune adds the restored trials. HyperBand would put trials that have ended into its
brackets, and the others would wait for them forever. So it leaves them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, HyperBandScheduler

from gkd_scale.search.results import Results


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving over ``step``; trials end by themselves after ``steps``."""

    def __init__(self, out: Path, steps: int, grace: int, reduction: int) -> None:
        # max_t lies beyond the last step: a trial that gets there exports its backbone before it ends.
        super().__init__(time_attr="step", max_t=steps + 1, grace_period=grace, reduction_factor=reduction)
        self._out = out
        self._curves: dict[str, list[tuple[int, float]]] | None = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put the scores that ``trial`` reported before a restart into the rungs."""
        super().on_trial_add(tune_controller, trial)
        if self._curves is None:
            self._curves = {result.name: result.curve for result in Results(self._out).trials()}
        for step, score in self._curves.get(trial.trial_id, []):
            self._trial_info[trial.trial_id].on_result(trial, step, self._metric_op * score)


class HyperBand(HyperBandScheduler):
    """Brackets counted in ``reports``, so that few trials fill them; the last rung ends by itself."""

    def __init__(self, reports: int, reduction: int) -> None:
        super().__init__(
            time_attr="report", max_t=reports, reduction_factor=reduction, stop_last_trials=False
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take in a trial that will run."""
        if not trial.is_finished():
            super().on_trial_add(tune_controller, trial)
