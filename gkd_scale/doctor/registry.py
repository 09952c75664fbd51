"""All groups of checks: the function that yields a group's lines, and the seconds that it may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line


class Group(NamedTuple):
    """``module.check(cfg)`` yields lines; it is given up after ``seconds(cfg)``."""

    module: str
    seconds: Callable[[DoctorConfig], float]

    def check(self, cfg: DoctorConfig) -> Iterator[Line]:
        """The group's lines, one by one."""
        lines: Iterator[Line] = importlib.import_module(f"gkd_scale.doctor.{self.module}").check(cfg)
        return lines


REGISTRY = {
    "versions": Group("versions", lambda _: 60),
    "devices": Group("devices", lambda _: 180),
    "deepspeed": Group("ops", lambda cfg: 1200 if cfg.compile else 180),
    "system": Group("system", lambda _: 30),
    "storage": Group("storage", lambda cfg: 120 + cfg.seconds),
    "network": Group("network", lambda _: 30),
    "nodes": Group("nodes", lambda _: 180),
}
