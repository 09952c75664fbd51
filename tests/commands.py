"""Command lines in text: found, and read by the parsers of the programs that they name."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path

from gkd_scale import config
from gkd_scale.benchmark.config import BenchmarkConfig
from gkd_scale.cache.config import (
    CacheTeacherConfig,
    InspectConfig,
    PlanConfig,
    PushConfig,
    RepairConfig,
    StatsConfig,
    VerifyConfig,
)
from gkd_scale.completion import CompletionConfig
from gkd_scale.demo.config import DemoConfig, MakeDataConfig
from gkd_scale.distill.config import CertifyConfig, Stage1Config
from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.export.config import ExportConfig
from gkd_scale.models.teacher_list import TeachersConfig
from gkd_scale.report.config import ReportConfig
from gkd_scale.search.config import SearchConfig
from gkd_scale.segment.config import EvaluateConfig, PredictConfig, Stage2Config, TeacherProbeConfig
from gkd_scale.segment.datasets.config import CheckConfig, ConvertConfig, DatasetsConfig
from gkd_scale.students import StudentsConfig
from tests.conftest import ROOT

CONFIGS = {
    "cache-teacher": CacheTeacherConfig,
    "plan": PlanConfig,
    "students": StudentsConfig,
    "teachers": TeachersConfig,
    "verify": VerifyConfig,
    "repair": RepairConfig,
    "push": PushConfig,
    "stats": StatsConfig,
    "inspect": InspectConfig,
    "certify": CertifyConfig,
    "probe": TeacherProbeConfig,
    "datasets": DatasetsConfig,
    "datasets check": CheckConfig,
    "datasets convert": ConvertConfig,
    "completion": CompletionConfig,
    "make-data": MakeDataConfig,
    "benchmark": BenchmarkConfig,
    "demo": DemoConfig,
    "stage1.py": Stage1Config,
    "stage2.py": Stage2Config,
    "evaluate": EvaluateConfig,
    "evaluate.py": EvaluateConfig,
    "predict": PredictConfig,
    "predict.py": PredictConfig,
    "search.py": SearchConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "export": ExportConfig,
}
_PROGRAM = re.compile(r"(?:gkd-scale|deepspeed|torchrun|python) ")


def commands(text: str) -> list[str]:
    """The commands in what was printed, each from its program to the end of its line."""
    whole = text.replace("\\\n", " ")
    return [line[match.start() :] for line in whole.splitlines() if (match := _PROGRAM.search(line))]


def parse(command: str) -> tuple[str, object]:
    """The program or subcommand, and its options as its own parser reads them."""
    words = list(itertools.takewhile(lambda word: word not in (">", "|", "&&"), shlex.split(command)))
    if words[0] == "gkd-scale":
        name, rest = words[1], words[2:]
        if name == "datasets" and rest and not rest[0].startswith("-"):
            name, rest = f"datasets {rest[0]}", rest[1:]
    else:
        at = next(index for index, word in enumerate(words) if word.endswith(".py"))
        name, rest = Path(words[at]).name, words[at + 1 :]
        script = Path(words[at])
        assert (script if script.is_absolute() else ROOT / script).is_file(), command
    return name, config.parse(CONFIGS[name], rest, prog=name, description="")


def search_main(argv: list[str]) -> int:
    """The ``main`` of ``tuning/search.py``."""
    spec = importlib.util.spec_from_file_location("tuning_search", ROOT / "tuning/search.py")
    assert spec is not None and spec.loader is not None
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    return int(door.main(argv))
