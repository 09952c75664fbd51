"""The samples of a cache in other libraries' formats, for ``cache_speed.py``; needs that library,
torch and simplejpeg (our decoder: what is compared is the loaders).

    python benchmarks/cache_peers.py streaming|litdata write EXPORT FOLDER
    python benchmarks/cache_peers.py streaming|litdata read FOLDER SAMPLES    # prints seconds

A sample is the JPEG's bytes and two fp16 arrays. Reading gives batches of 32 of decoded pixels (3, H, W),
CLS and patch tokens, with the library's own data loader and 2 workers; the first pass is not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

BATCH, WORKERS, CHUNK = 32, 2, 1 << 26


def samples(folder: Path) -> Iterator[dict[str, Any]]:
    for jpg in sorted(folder.glob("*.jpg")):
        yield {
            "jpg": jpg.read_bytes(),
            "cls": np.load(jpg.with_suffix(".cls.npy")),
            "patch": np.load(jpg.with_suffix(".patch.npy")),
        }


def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    pixels = simplejpeg.decode_jpeg(sample["jpg"], "RGB")
    arrays = (np.ascontiguousarray(pixels.transpose(2, 0, 1)), sample["cls"], sample["patch"])
    return tuple(torch.as_tensor(np.array(array)) for array in arrays)


def load_sample(path: str) -> dict[str, Any]:
    jpg = Path(path)
    return {
        "jpg": jpg.read_bytes(),
        "cls": np.load(jpg.with_suffix(".cls.npy")),
        "patch": np.load(jpg.with_suffix(".patch.npy")),
    }


def write_streaming(source: Path, out: Path) -> None:
    from streaming import MDSWriter

    first = next(samples(source))
    columns = {"jpg": "bytes"}
    for name in ("cls", "patch"):
        columns[name] = f"ndarray:float16:{','.join(map(str, first[name].shape))}"
    with MDSWriter(out=str(out), columns=columns, size_limit=CHUNK) as writer:
        for sample in samples(source):
            writer.write(sample)


def read_streaming(folder: Path) -> Any:
    from streaming import StreamingDataset

    class Reader(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index))

    data = Reader(local=str(folder), shuffle=False, batch_size=BATCH)
    return torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def write_litdata(source: Path, out: Path) -> None:
    from litdata import optimize

    paths = [str(path) for path in sorted(source.glob("*.jpg"))]
    optimize(fn=load_sample, inputs=paths, output_dir=str(out), chunk_bytes=CHUNK, num_workers=1)


def read_litdata(folder: Path) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    class Reader(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return decode(super().__getitem__(index))

    data = Reader(str(folder), shuffle=False)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)


def main() -> None:
    name, action, folder, argument = sys.argv[1:]
    torch.set_num_threads(1)
    if action == "write":
        {"streaming": write_streaming, "litdata": write_litdata}[name](Path(folder), Path(argument))
        print(0)
        return
    loader = {"streaming": read_streaming, "litdata": read_litdata}[name](Path(folder))
    goal = int(argument)
    for _ in range(2):
        start, count = time.perf_counter(), 0
        for pixels, cls, patches in loader:
            assert pixels.dtype == torch.uint8 and cls.dtype == patches.dtype == torch.float16
            count += len(pixels)
        seconds = time.perf_counter() - start
        assert count >= goal, count
    print(seconds * goal / count)


if __name__ == "__main__":
    main()
