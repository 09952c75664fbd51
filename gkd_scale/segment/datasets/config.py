"""The options of ``gkd-scale datasets`` and its two verbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.config import option


@dataclass
class DatasetsConfig:
    """List the dataset adapters."""

    json: bool = option(False, "print JSON")


@dataclass
class CheckConfig:
    """Count what is in a dataset's folder."""

    name: str = option(help="adapter, as gkd-scale datasets lists them", positional=True)
    path: str = option(
        help="the dataset's folder; @PART for one part alone", positional=True, metavar="PATH[@PART]"
    )
    decode: bool = option(False, "decode the images too, not only their headers")
    workers: int = option(2, "threads that read", within=ranges.THREADS)
    json: bool = option(False, "print JSON")


@dataclass
class ConvertConfig:
    """Bring a dataset into a form that reads faster, or at all."""

    name: str = option(help="adapter, or potsdam or vaihingen for the original tiles", positional=True)
    source: str = option(
        help="the dataset's folder; @PART for one part alone", positional=True, metavar="SRC[@PART]"
    )
    out: Path = option(help="new folder; the same command again goes on", positional=True, metavar="DST")
    copy: bool = option(False, "copy images where they would be linked")
    workers: int = option(2, "threads that convert", within=ranges.THREADS)
