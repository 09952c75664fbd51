"""The pictures of the documentation, from what the tutorial and the demo wrote.

    python docs/site/pictures.py --tutorial tutorial --demo runs/demo

Run the commands of docs/tutorial.md first, and ``make demo``. The pages of the reports are photographed by
Chromium (``--chromium PATH``).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gkd_scale.segment.datasets.registry import open_dataset

IMAGES = Path(__file__).resolve().parents[1] / "images"
DOMAINS = ("source/train", "unseen_night", "unseen_fog", "unseen_rain", "unseen_snow", "unseen_city")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


_SHORTEN = """<script>
for (const heading of document.querySelectorAll("h3")) {
    if (!heading.textContent.startsWith("IoU by class")) continue;
    while (!/^H[23]$/.test(heading.nextElementSibling.tagName)) heading.nextElementSibling.remove();
    heading.remove();
}
</script>"""


def domains(data: Path) -> Image.Image:
    """One scene of each domain above its labels; a proxy image stands first."""
    proxy = Image.open(min((data / "proxy").glob("*"))).convert("RGB")
    columns = [(proxy, Image.new("RGB", proxy.size, "white"))]
    for domain in DOMAINS:
        scenes = open_dataset(f"embedded:{data / domain}")
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(scenes.classes)] = scenes.palette
        columns.append((Image.fromarray(scenes[0].image), Image.fromarray(colours[scenes[0].label])))
    return pairs(columns)


def predictions(images: Path, out: Path, count: int = 7) -> Image.Image:
    """Images above their overlays."""
    overlays = sorted((out / "overlays").glob("*.jpg"))[:count]
    columns = [(next(images.glob(f"{each.stem}.*")), each) for each in overlays]
    return pairs([(Image.open(above).convert("RGB"), Image.open(below)) for above, below in columns])


def pairs(columns: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Two rows of pictures of one size."""
    width, height = columns[0][0].width + 4, columns[0][0].height + 4
    sheet = Image.new("RGB", (width * len(columns) - 4, 2 * height - 4), "white")
    for column, pair in enumerate(columns):
        for row, picture in enumerate(pair):
            sheet.paste(picture, (column * width, row * height))
    return sheet


def photograph(page: Path, chromium: str, size: tuple[int, int], *, shorten: bool = False) -> Image.Image:
    """The top of a page, as a browser shows it; ``shorten`` leaves the tables by class out."""
    with tempfile.TemporaryDirectory() as folder:
        if shorten:
            short = Path(folder) / "page.html"
            short.write_text(page.read_text(encoding="utf-8") + _SHORTEN, encoding="utf-8")
            page = short
        shot = Path(folder) / "page.png"
        window = f"--window-size={size[0]},{size[1]}"
        command = [chromium, *FLAGS, window, f"--user-data-dir={folder}", f"--screenshot={shot}"]
        subprocess.run([*command, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            return image.convert("RGB")


def save(picture: Image.Image, name: str, width: int, quality: int = 80) -> None:
    """As WebP, at most ``width`` pixels wide."""
    if picture.width > width:
        size = (width, round(picture.height * width / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    IMAGES.mkdir(exist_ok=True)
    picture.save(IMAGES / name, quality=quality, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tutorial", type=Path, help="folder that the tutorial's commands wrote")
    parser.add_argument("--demo", type=Path, help="folder of gkd-scale demo")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    args = parser.parse_args()
    if args.tutorial:
        save(domains(args.tutorial / "data"), "domains.webp", 924)
        save(Image.open(args.tutorial / "tokens.png").convert("RGB"), "tokens.webp", 900)
        fog = predictions(args.tutorial / "data/unseen_fog/images", args.tutorial / "predictions")
        save(fog, "predictions.webp", 924)
        page = photograph(args.tutorial / "report.html", args.chromium, (1100, 1500))
        save(page, "tutorial-report.webp", 900, 70)
    if args.demo:
        page = photograph(args.demo / "report.html", args.chromium, (1240, 1870), shorten=True)
        save(page, "report.webp", 1000, 75)


if __name__ == "__main__":
    main()
