from __future__ import annotations

from pathlib import Path

import pytest

from tests.segment.support import Blocks, write_folder


@pytest.fixture(scope="session")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fit``, ``val`` and ``away``: three labelled folders of one class list."""
    root = tmp_path_factory.mktemp("domains")
    for name, images in (("fit", 6), ("val", 4), ("away", 2)):
        write_folder(root / name, Blocks(images))
    return root
