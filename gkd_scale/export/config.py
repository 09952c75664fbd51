"""The options of ``gkd-scale export``. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_scale.cache.config import parse_size
from gkd_scale.config import option
from gkd_scale.errors import ConfigError
from gkd_scale.export.formats import DTYPES, FORMATS, WITH_HEAD
from gkd_scale.segment.config import named_domains

if TYPE_CHECKING:
    from gkd_scale.types import Size


@dataclass(kw_only=True)
class ExportConfig:
    """Write a run's backbone, or its whole segmenter, as files that other libraries load."""

    run: Path = option(help="folder of a finished stage-1 or stage-2 run", positional=True)
    format: str = option(help="what to write", choices=tuple(FORMATS))
    out: Path = option(help="folder of the export; it must not exist yet")
    with_head: bool = option(
        False, f"the whole segmenter of a stage-2 run, not the backbone alone ({WITH_HEAD})"
    )
    dtype: str = option(
        "fp32", "fp16: half the bytes; int8: a quarter, by onnxruntime's quantisation (onnx)", choices=DTYPES
    )
    image_size: str | None = option(
        None,
        "size that it is checked at, and fixed to where only one works (default: the run's)",
        metavar="N|HxW",
    )
    images: str | None = option(
        None,
        "images to check and calibrate on (default: the run's training images, else embedded scenes)",
        metavar="PATH|URL|ADAPTER:PATH",
    )
    data: list[str] = option(
        [], "with --with-head: measure mIoU of run and export here, repeatable", metavar="NAME=ADAPTER:PATH"
    )
    license: str | None = option(
        None, "licence of the weights, for the model card (default: not stated)", metavar="SPDX"
    )
    push_to_hub: str | None = option(None, "upload the folder to this Hugging Face repository", metavar="ID")

    def __post_init__(self) -> None:
        fmt = FORMATS.get(self.format)
        if fmt is None:
            return
        if self.with_head and not fmt.head:
            raise ConfigError(
                f"--format {self.format} holds a backbone alone: it has no class for our heads",
                f"use --format {WITH_HEAD}, or leave --with-head out",
            )
        if self.dtype not in fmt.dtypes:
            able = " or ".join(other.name for other in FORMATS.values() if self.dtype in other.dtypes)
            raise ConfigError(
                f"--format {self.format} is written as fp32, not {self.dtype}", f"use --format {able}"
            )
        if self.data and not self.with_head:
            raise ConfigError(
                "--data is given, but a backbone alone predicts no classes",
                "add --with-head, or leave --data out",
            )
        self.domains()
        self.size()

    def domains(self) -> dict[str, str]:
        """Domain names to ``ADAPTER:PATH``; ConfigError for a malformed or repeated one."""
        return named_domains(self.data)

    def size(self) -> Size | None:
        """``image_size`` (H, W) in pixels; None if the run decides."""
        return parse_size(self.image_size) if self.image_size else None
