"""What MkDocs does not do by itself: pages from the whole repository, the notebook, generated lists.

A page links to other files of the repository by their paths, as GitHub shows them. Here a link to a page of
the site becomes a link to that page, and a file that is linked and is no page is copied to ``files/``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "launchers/README.md": "launchers.md",
    "launchers/presets/README.md": "presets.md",
    "shards/README.md": "cache-format.md",
    "shards/INPUTS.md": "inputs.md",
    "tuning/README.md": "search-spaces.md",
    "benchmarks/recipes/README.md": "benchmarks/recipes.md",
    **{f"benchmarks/{path.name}": f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.md")},
    "docs/quickstart.ipynb": "quickstart.md",
}
"""Pages that are not Markdown files of ``docs/``: path in the repository, path in the site."""

LAUNCHERS = {
    "launchers/stage1.py": "gkd_scale.distill.config:Stage1Config",
    "launchers/stage2.py": "gkd_scale.segment.config:Stage2Config",
    "launchers/evaluate.py": "gkd_scale.segment.config:EvaluateConfig",
    "launchers/predict.py": "gkd_scale.segment.config:PredictConfig",
    "tuning/search.py": "gkd_scale.search.config:SearchConfig",
}

_LINK = re.compile(r"(?P<text>!?\[[^\]]*\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:class|mod|func|data|meth|attr):<code>(?:[~.]+[\w.]*?)?([\w]+)</code>")


def on_config(config: Any) -> Any:
    """The package is found where it is."""
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, and the files that pages link to."""
    for source, uri in PAGES.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            files.append(File.generated(config, uri, content=notebook(path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    files.append(File.generated(config, "extra.css", abs_src_path=str(ROOT / "docs/site/extra.css")))
    for page in list(files.documentation_pages()):
        for path in links(page.content_string, source_of(page.src_uri)):
            uri = site_path(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them, and the generated lists."""
    source, here = source_of(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def move(match: re.Match[str]) -> str:
        path = in_repository(match["path"], source)
        if path is None or not (ROOT / path).is_file():
            return match[0]
        return f"{match['text']}{posixpath.relpath(site_path(path), here or '.')}{match['anchor'] or ''})"

    markdown = _LINK.sub(move, markdown)
    for marker, make in LISTS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are reStructuredText: its roles and literal blocks, as Markdown has left them."""
    return _ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")


def source_of(uri: str) -> str:
    """A page's path in the repository."""
    return next((source for source, to in PAGES.items() if to == uri), f"docs/{uri}")


def site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"


def in_repository(link: str, source: str) -> str | None:
    """What a link of the page ``source`` points to, from the root of the repository; None if outside."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return None if path.startswith(("../", "/")) else path


def links(markdown: str, source: str) -> Iterator[str]:
    """The files that a page links to."""
    for match in _LINK.finditer(markdown):
        path = in_repository(match["path"], source)
        if path is not None:
            yield path


# ------------------------------------------------------------------------------------ generated lists


def notebook(path: Path) -> str:
    """A notebook as Markdown, with the outputs that are stored in it."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{''.join(data['image/png'].split())})")
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


_PUBLIC = """
::: {place}.{name}
    options:
      heading: gkd_scale.{name}
      toc_label: {name}
      heading_level: 2
"""


def public_names() -> str:
    """A section for each public name of the package, where it is defined."""
    import gkd_scale

    places = gkd_scale._PLACES
    names = sorted(set(gkd_scale.__all__) & set(places), key=str.lower)
    return "\n".join(_PUBLIC.format(place=places[name], name=name) for name in names)


def command_help() -> str:
    """``--help`` of every command."""
    from gkd_scale.cli import COMMANDS, main

    return "\n".join(
        section(f"gkd-scale {name}", help_of(partial(main, [*name.split(), "--help"]))) for name in COMMANDS
    )


def launcher_help() -> str:
    """``--help`` of every launcher, and of the search."""
    from gkd_scale import config

    sections = []
    for script, place in LAUNCHERS.items():
        module, _, name = place.partition(":")
        cls = getattr(importlib.import_module(module), name)
        run = partial(config.parse, cls, ["--help"], prog=script, description=(cls.__doc__ or "").strip())
        sections.append(section(script, help_of(run)))
    return "\n".join(sections)


def section(title: str, text: str) -> str:
    return f"## `{title}`\n\n```text\n{text.strip()}\n```\n"


def help_of(run: Callable[[], object]) -> str:
    """What a parser prints and then leaves with."""
    out = io.StringIO()
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "88"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            run()
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue()


LISTS = {
    "<!-- public names -->": public_names,
    "<!-- commands -->": command_help,
    "<!-- launchers -->": launcher_help,
}
"""What stands in a page, and what is written there instead."""
