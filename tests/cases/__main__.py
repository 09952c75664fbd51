"""Run every case and write the table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.cases.case import Bench
from tests.cases.table import TABLE, all_cases, page


def main() -> None:
    outcomes = {}
    for each in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            outcomes[each] = str(each.run(Bench(Path(folder))))
        sys.stdout.write(f"{each.kind} | {each.what} | {outcomes[each]}\n")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
