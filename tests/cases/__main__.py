"""Run every case and write the table."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from tests.cases.case import Bench
from tests.cases.table import TABLE, all_cases, page


def main() -> int:
    outcomes, failures = {}, []
    for each in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes[each] = str(each.run(Bench(Path(folder))))
            except Exception:
                failures.append(f"{each.kind} | {each.what}\n{traceback.format_exc()}")
                continue
        sys.stdout.write(f"{each.kind} | {each.what} | {outcomes[each]}\n")
        sys.stdout.flush()
    if failures:
        sys.stderr.write("\n".join([*failures, f"{len(failures)} failed; {TABLE} is left as it is\n"]))
        return 1
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(page(outcomes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
