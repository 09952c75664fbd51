"""Run docs/quickstart.ipynb and keep what it shows: ``python docs/site/notebook.py [--out FILE]``.

Warnings and other lines of stderr are not kept: they name paths of the machine.
"""

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
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # the same picture as the PNG
    notebook.metadata["language_info"] = {"name": "python"}  # without the version it happened to run on
    nbformat.write(notebook, args.out)


if __name__ == "__main__":
    main()
