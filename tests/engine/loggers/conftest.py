"""An empty MLflow store, made once: making its tables takes seconds."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of an empty store of the test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def offline(store: str) -> Iterator[None]:
    """The environment of a user with wandb offline and MLflow in ``store``."""
    with mock.patch.dict(os.environ, {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": store}):
        yield
