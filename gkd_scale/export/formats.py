"""The formats by name. Light: nothing here imports torch.

To add one: write ``gkd_scale/export/to_NAME.py`` with ``write`` and ``load`` (see :mod:`.subject`), name it
in :data:`FORMATS`, and test it in ``tests/export`` in a process that never imports gkd_scale.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from gkd_scale.errors import ConfigError


@dataclass(frozen=True)
class Format:
    """``head``: the whole segmenter can be written, not only the backbone. ``needs`` are optional modules."""

    name: str
    module: str
    library: str
    head: bool = False
    dtypes: tuple[str, ...] = ("fp32",)
    needs: tuple[str, ...] = ()

    def implementation(self) -> Any:
        """The module that writes it; ConfigError if a library is missing."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"--format {self.name} needs {', '.join(missing)}, not installed here",
                "pip install 'gkd-scale[export]'",
            )
        return importlib.import_module(self.module)


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("timm", "gkd_scale.export.to_timm", "timm"),
        Format("transformers", "gkd_scale.export.to_transformers", "transformers"),
        Format(
            "onnx",
            "gkd_scale.export.to_onnx",
            "onnx",
            head=True,
            dtypes=("fp32", "fp16", "int8"),
            needs=("onnx", "onnxruntime", "onnxscript"),
        ),
        Format("torch-export", "gkd_scale.export.to_torch_export", "pytorch", head=True),
    )
}
DTYPES = ("fp32", "fp16", "int8")
WITH_HEAD = " or ".join(fmt.name for fmt in FORMATS.values() if fmt.head)
