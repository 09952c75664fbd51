"""A video file as images: its frames, by number. Needs PyAV (``pip install 'gkd-scale[video]'``)."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gkd_scale.errors import DataError

EXTENSIONS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
AHEAD = 64
"""The most decoded frames that are kept because a later one was read first."""


def is_video(images: str) -> bool:
    """Whether ``images`` is a video file of this machine, by its ending."""
    path = Path(images)
    return path.suffix.lower() in EXTENSIONS and path.is_file()


class Video:
    """The frames of a video, named ``000000.bmp``, ``000001.bmp``, ... in the order they are shown.

    Reading should go forward; several threads may read. For an earlier frame the video is decoded from the
    start again. Frames are turned upright as the file says. DataError if PyAV is not installed, or if the
    file holds no video.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._frames: Iterator[Any] = iter(())
        self._next = 0
        self._early: dict[int, Any] = {}
        with self._open() as container:
            stream = container.streams.video[0]
            self._size = 3 * stream.codec_context.width * stream.codec_context.height
            self._count = sum(packet.pts is not None for packet in container.demux(stream))
        if not self._count:
            raise DataError(f"{self._path} holds no frames", "give another video")
        self._rewind()

    def entries(self) -> list[tuple[str, int]]:
        return [(f"{number:06d}.bmp", self._size) for number in range(self._count)]

    def read(self, name: str) -> bytes:
        """A frame as a BMP file; OSError if it cannot be decoded."""
        number = int(Path(name).stem)
        with self._lock:
            frame = self._frame(number)
        image = frame.to_image().rotate(frame.rotation, expand=True) if frame.rotation else frame.to_image()
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "BMP")
        return buffer.getvalue()

    def _frame(self, number: int) -> Any:
        if number in self._early:
            return self._early.pop(number)
        if number < self._next:
            self._rewind()
        import av

        try:
            for frame in self._frames:
                self._next += 1
                if self._next > number:
                    return frame
                if number - self._next < AHEAD:
                    self._early[self._next - 1] = frame
                    self._early.pop(self._next - 1 - AHEAD, None)
        except av.FFmpegError as error:
            raise OSError(f"frame {number} cannot be decoded: {error}") from None
        raise OSError(f"the video ends before frame {number}")

    def _rewind(self) -> None:
        container = self._open()
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        self._frames, self._next, self._early = container.decode(stream), 0, {}

    def _open(self) -> Any:
        try:
            import av
        except ImportError:
            raise DataError(
                f"{self._path} is a video, and PyAV is not installed", "pip install 'gkd-scale[video]'"
            ) from None
        try:
            container = av.open(str(self._path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self._path} cannot be read as a video: {error}", "give another file") from None
        if not container.streams.video:
            container.close()
            raise DataError(f"{self._path} holds no video", "give another file")
        return container
