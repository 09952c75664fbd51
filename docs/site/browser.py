"""Pages in a real browser: what it complains about, and what keeps people out.

    python docs/site/browser.py runs/demo/report.html build/docs/index.html

Serves each page's folder to headless Chromium, light and dark, without another network. Prints console
errors, failed requests and what axe-core finds of WCAG 2 A and AA (contrast, alternative texts, names), and
uses the attention viewer with the keyboard and the mouse. Status 1 where there is anything. Needs Chromium
and ``pip install playwright axe-playwright-python``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address at which ``folder`` is served on this machine."""
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def browser(chromium: str) -> Iterator[Browser]:
    """Headless Chromium."""
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield chrome
        finally:
            chrome.close()


def faults(chrome: Browser, path: Path, scheme: Any = "light") -> list[str]:
    """What is wrong with a page, a line each."""
    with serve(path.resolve().parent) as address:
        lines = _faults(chrome, f"{address}/{path.name}", scheme)
    return [f"{path} ({scheme}): {each}" for each in lines]


def _faults(chrome: Browser, address: str, scheme: Any) -> list[str]:
    context = chrome.new_context(color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    lines: list[str] = []
    page.on("console", lambda note: lines.append(f"console: {note.text}") if note.type == "error" else None)
    page.on("pageerror", lambda error: lines.append(f"error: {error}"))
    page.on("requestfailed", lambda request: lines.append(f"not loaded: {request.url}"))
    page.goto(address, wait_until="networkidle")
    for violation in Axe().run(page, options=RULES).response["violations"]:
        places = ", ".join(" ".join(map(str, node["target"])) for node in violation["nodes"][:3])
        lines.append(f"axe {violation['id']} ({len(violation['nodes'])}): {violation['help']}: {places}")
    lines += _viewer(page)
    context.close()
    return lines


def _viewer(page: Page) -> list[str]:
    """The first attention viewer of a page follows the arrow keys and the mouse."""
    box = page.locator(".attention").first
    if not box.count():
        return []
    output = box.locator("xpath=..").locator("output")
    before = output.inner_text()
    box.focus()
    page.keyboard.press("ArrowRight")
    by_key = output.inner_text()
    box.click(position={"x": 2, "y": 2})
    by_click = output.inner_text()
    faults = []
    if not before.startswith("From row") or by_key == before:
        faults.append(f"the attention viewer does not follow the keyboard: {before!r}, {by_key!r}")
    if not by_click.startswith("From row 1, column 1"):
        faults.append(f"the attention viewer does not follow the mouse: {by_click!r}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    args = parser.parse_args()
    with browser(args.chromium) as chrome:
        lines = [
            line
            for path in args.pages
            for scheme in ("light", "dark")
            for line in faults(chrome, path, scheme)
        ]
    print("\n".join(lines) or f"{len(args.pages)} pages, light and dark: nothing to complain about")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
