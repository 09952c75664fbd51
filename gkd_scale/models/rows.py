"""Tables of models that ship as CSV files: a frozen dataclass is a row, its fields are the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gkd_scale import files

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    R = TypeVar("R", bound=DataclassInstance)


def read(row: type[R], path: Path) -> list[R]:
    """The rows of a file, whose columns are integers, floats or texts as the fields of ``row`` say."""
    kinds: dict[str, Any] = {"int": int, "float": float, "str": str}
    types = {field.name: kinds[str(field.type)] for field in fields(row)}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            row(**{key: types[key](value) for key, value in line.items()}) for line in csv.DictReader(file)
        ]


def write(rows: Iterable[Any], path: Path) -> None:
    """Write rows of one class, smallest model first."""
    items = sorted(rows, key=lambda row: (row.parameters, row.name))
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(items[0])], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in items)
    files.write_text(path, text.getvalue())
