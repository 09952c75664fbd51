"""Kind M: equal keys in YAML."""

from __future__ import annotations

from tests.cases.case import Bench, case

KIND = "M. Equal keys in YAML and JSON"


@case(KIND, "a preset that says `steps` twice")
def steps_twice(bench: Bench) -> object:
    preset = bench.folder / "preset.yaml"
    preset.write_text("steps: 10\nsteps: 20\n")
    return bench.stage1("--config", preset, "--out", bench.folder / "run")
