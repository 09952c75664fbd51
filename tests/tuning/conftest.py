"""``tuning/`` is no package: its scripts find each other beside themselves, and so do these tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.segment.support import Blocks, write_folder

sys.path.insert(0, str(ROOT / "tuning"))


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fit``, ``val`` and ``away``: three labelled folders of one class list."""
    root = tmp_path_factory.mktemp("domains")
    for name, images in (("fit", 6), ("val", 4), ("away", 2)):
        write_folder(root / name, Blocks(images))
    return root
