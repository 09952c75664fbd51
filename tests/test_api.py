"""What ``import gkd_scale`` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gkd_scale


def test_every_public_name_is_there_and_unknown_ones_are_not() -> None:
    for name in gkd_scale.__all__:
        assert getattr(gkd_scale, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'load_segmentor'"):
        gkd_scale.load_segmentor  # noqa: B018


def test_the_import_alone_loads_no_torch() -> None:
    code = "import sys, gkd_scale; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
