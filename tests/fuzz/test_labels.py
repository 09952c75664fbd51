"""Mutated label folders: read right, or one GkdError; never another exception, never a file written."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gkd_scale.errors import GkdError
from gkd_scale.segment.datasets import audit
from gkd_scale.segment.datasets.config import CheckConfig
from gkd_scale.segment.datasets.labels import identity
from gkd_scale.segment.datasets.plausible import Evidence, findings
from gkd_scale.segment.datasets.registry import check, glance, open_dataset
from gkd_scale.types import UInt8Array
from tests.segment.datasets.miniature import write_png16

SIZE = (12, 16)
MODES = ["L", "P", "1", "I;16", "I", "F", "RGB", "RGBA", "LA", "PA"]
IDS = st.sampled_from([*range(6), 17, 34, 85, 127, 128, 170, 200, 254, 255])
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO"]


@st.composite
def values(draw: st.DrawFn) -> UInt8Array:
    """Blocks of a few values."""
    choice = draw(st.lists(IDS, min_size=1, max_size=8))
    seed = draw(st.integers(0, 9))
    return np.resize(np.array(choice, np.uint8), 12)[
        np.random.default_rng(seed).integers(0, 12, (3, 4)).repeat(4, 0).repeat(4, 1)
    ]


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    """A label in any mode and format, perhaps damaged."""
    ids = draw(values())
    if draw(st.integers(0, 9)) == 0:
        with tempfile.TemporaryDirectory() as folder:
            wide = np.stack([ids.astype(np.uint16) * 257] * draw(st.sampled_from([3, 4])), -1)
            data = write_png16(Path(folder, "x.png"), wide).read_bytes()
    else:
        image = Image.fromarray(ids)
        if draw(st.booleans()):
            image.putpalette(draw(st.binary(min_size=768, max_size=768)))
        data = _save(image, draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS)))
    if draw(st.integers(0, 3)) == 0:
        content = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        data = bytes(content[: draw(st.integers(0, len(data)))])
    return data


def _save(image: Image.Image, mode: str, format: str) -> bytes:
    """The image in a mode and a format where Pillow can do that, else as a PNG."""
    for each, kind in ((mode, format), (mode, "TIFF"), ("L", "PNG")):
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError):
            (image if image.mode == each else image.convert(each)).save(buffer, kind)
            return buffer.getvalue()
    raise AssertionError


NAMES = st.sampled_from([None, "ground\nhouse\n", "a\nb\nc\nd\ne\nf\n", "a\n", "a\na\n", ""])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(label_files(), min_size=1, max_size=3), NAMES)
def test_label_folders(files: list[bytes], names: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, data in enumerate(files):
            for kind in ("images", "labels"):
                (root / kind).mkdir(exist_ok=True)
            Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "images" / f"{number}.png")
            (root / "labels" / f"{number}.png").write_bytes(data)
        if names is not None:
            (root / "classes.txt").write_text(names)
        before = sorted(root.rglob("*"))
        good = _try(root)
        assert sorted(root.rglob("*")) == before
        if good:
            dataset = open_dataset(f"folder:{root}")
            assert len(dataset.classes) > 1
            for index in range(len(files)):
                label = dataset.label(index)
                assert label.shape == SIZE and set(np.unique(label)) <= {*range(len(dataset.classes)), 255}


def _try(root: Path) -> bool:
    """Whether the check before stage 2 lets the folder pass, and ``datasets check`` too."""
    try:
        dataset = open_dataset(f"folder:{root}")
        glance(dataset, quiet=True)
        check(dataset, 0)
    except GkdError as error:
        assert error.hint and error.message
        with contextlib.suppress(GkdError):
            reports = audit.check(CheckConfig("folder", str(root), workers=0, json=True))
            assert any(report.faults for report in reports), error
        return False
    reports = audit.check(CheckConfig("folder", str(root), workers=0, json=True))
    assert not any(report.faults for report in reports)
    return True


VALUES = [0, 9, 4, 7, 2, 8, 1]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 999),
    st.floats(0.5, 3.0).filter(lambda scale: not 0.85 < scale < 1.15),
    st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]),
)
def test_labels_that_were_resized_with_interpolation_are_refused(
    seed: int, scale: float, how: Image.Resampling
) -> None:
    size = (round(128 * scale), round(96 * scale))
    suspect = Evidence(identity(10), [str(value) for value in range(10)])
    usual = Evidence(identity(10), suspect.classes)
    for number in range(3):
        label = blobs(seed + number)
        for evidence, method in ((suspect, how), (usual, Image.Resampling.NEAREST)):
            labels = np.asarray(Image.fromarray(label).resize(size, method)).clip(0, 9)
            evidence.look(labels, Path(f"{number}.png"))
    assert any(each.error and "interpolation" in each.text for each in findings(suspect))
    assert not any("interpolation" in each.text for each in findings(usual) if each.error)


def blobs(seed: int) -> UInt8Array:
    """A label (96, 128) of round regions, the ids of neighbours far apart."""
    random = np.random.default_rng(seed)
    places = random.integers(0, 128, (20, 2))
    rows, columns = np.mgrid[:96, :128]
    nearest = ((rows[..., None] - places[:, 0]) ** 2 + (columns[..., None] - places[:, 1]) ** 2).argmin(-1)
    return np.array(VALUES, np.uint8)[nearest % len(VALUES)]
