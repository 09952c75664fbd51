"""Videos as images: frames in order, from several threads, and mistakes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_scale.cli import main
from gkd_scale.errors import DataError
from gkd_scale.images import open_bytes
from gkd_scale.segment.video import Video, is_video
from gkd_scale.types import UInt8Array

from .support import write_run

av = pytest.importorskip("av")
FRAMES = 9


def frame(number: int) -> UInt8Array:
    return np.random.default_rng(number).integers(0, 256, (32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames of noise, without loss."""
    path = tmp_path_factory.mktemp("video") / "drive.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for number in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_frames_come_by_number_in_any_order_and_from_threads(video: Path) -> None:
    assert is_video(str(video)) and not is_video(str(video.parent)) and not is_video("gone.mp4")
    source = Video(video)
    names = [name for name, _ in source.entries()]
    assert names == [f"{number:06d}.bmp" for number in range(FRAMES)]
    order = [*range(FRAMES), *random.Random(0).sample(range(FRAMES), FRAMES)]
    with ThreadPoolExecutor(3) as pool:
        contents = list(pool.map(lambda number: source.read(names[number]), order))
    for number, data in zip(order, contents, strict=True):
        np.testing.assert_array_equal(np.asarray(open_bytes(data).image), frame(number))


def test_predict_takes_a_video_and_goes_on(video: Path, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = ["predict", str(run), "--images", str(video), "--out", str(out), "--workers", "2"]
    assert main(command) == 0
    masks = sorted((out / "masks").glob("*.png"))
    assert [mask.stem for mask in masks] == [f"{number:06d}" for number in range(FRAMES)]
    before = masks[0].read_bytes()
    masks[0].unlink()
    times = [mask.stat().st_mtime_ns for mask in masks[1:]]
    assert main(command) == 0
    assert masks[0].read_bytes() == before
    assert [mask.stat().st_mtime_ns for mask in masks[1:]] == times


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    text, picture = tmp_path / "text.mp4", tmp_path / "cut.mkv"
    text.write_text("no video")
    Image.fromarray(frame(0)).save(tmp_path / "a.png")
    picture.write_bytes(b"\x1a\x45\xdf\xa3" + b"\0" * 64)
    for path in (text, picture):
        with pytest.raises(DataError, match="cannot be read as a video"):
            Video(path)
