"""Run docs/quickstart.ipynb and keep what it printed: ``python docs/site/notebook.py [--out FILE]``."""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "quickstart.ipynb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="where the executed notebook goes")
    args = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(args.out.resolve().parent))
    notebook.metadata["language_info"] = {"name": "python"}  # without the version it happened to run on
    nbformat.write(notebook, args.out)


if __name__ == "__main__":
    main()
