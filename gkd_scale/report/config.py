"""The options of ``gkd-scale report``. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.config import option
from gkd_scale.errors import ConfigError
from gkd_scale.segment.config import named_domains


@dataclass(kw_only=True)
class ReportConfig:
    """Show runs on one HTML page: how they were trained, their mIoU by domain and class, and images."""

    runs: list[Path] = option(
        [],
        "folder of a finished stage-2 run, or of a stage-1 run; several are shown together",
        positional=True,
    )
    compare: tuple[Path, Path] | None = option(
        None, "two stage-2 runs, and how much the first is above the second", metavar=("RUN_A", "RUN_B")
    )
    data: list[str] = option(
        [], "a domain to show images of, repeatable; it is scored anew", metavar="NAME=ADAPTER:PATH"
    )
    out: Path = option(Path("report.html"), "the page: one file, no network needed", metavar="FILE")
    scenes: int = option(
        3, "images of each domain that are shown as best, and as worst", metavar="N", within=ranges.NUMBER
    )
    images: int = option(
        200,
        "images of each domain that are looked at, evenly spaced; 0 for all",
        metavar="N",
        within=ranges.NUMBER,
    )
    teacher_weights: Path | None = option(
        None, "weights of the runs' teacher, if timm cannot download them; for its tokens and its cost"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")

    def folders(self) -> list[Path]:
        """The runs to show; ConfigError for none, or for both ways of naming them."""
        if self.runs and self.compare:
            raise ConfigError("runs are named both alone and in --compare", "give RUN..., or --compare A B")
        folders = list(self.compare or self.runs)
        if not folders:
            raise ConfigError("no run is named", "give RUN..., or --compare RUN_A RUN_B")
        return folders

    def domains(self) -> dict[str, str]:
        """Domain names to ``ADAPTER:PATH``; ConfigError for a malformed or repeated one."""
        return named_domains(self.data)
