from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.views import decode
from gkd_scale.errors import CacheError, ConfigError, DataError, DiskFullError

from .support import SIZE, TinyTeacher, config, tree, write_images

Whole = tuple[Path, BuildReport]


def test_manifest_has_one_row_an_image(whole: Whole) -> None:
    rows = pq.read_table(whole[0] / "manifest.parquet").to_pylist()
    assert len(rows) == 12
    bad = {row["path"]: row for row in rows if row["status"] == "error"}
    assert set(bad) == {"b/text.jpg", "b/truncated.png"}
    assert all(row["error"] and row["row"] is None for row in bad.values())
    good = [row for row in rows if row["status"] == "ok"]
    for shard in range(3):
        numbers = [row["row"] for row in good if row["shard"] == shard]
        assert numbers == list(range(len(numbers)))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_every_field(whole: Whole) -> None:
    import webdataset

    out, _ = whole
    urls = sorted(str(tar) for tar in (out / "v00").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    gc.collect()  # webdataset leaves its files to the garbage collector
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [sample["__key__"] for sample in samples] == [r["sid"] for r in manifest if r["status"] == "ok"]
    cache = Cache.open(out)
    for index, sample in enumerate(samples):
        ours = cache.read(0, index)
        assert sample["jpg"].shape == (*SIZE, 3) and sample["jpg"].dtype == np.uint8
        np.testing.assert_array_equal(sample["jpg"].transpose(2, 0, 1), decode(ours.jpeg))
        np.testing.assert_array_equal(sample["cls.npy"], ours.cls)
        np.testing.assert_array_equal(sample["patch.npy"], ours.patches)
        assert sample["patch.npy"].shape == (24, 12) and sample["patch.npy"].dtype == np.float16
        assert sample["json"]["sid"] == sample["__key__"]
        assert {"path", "crop", "flip", "color", "view", "source"} <= set(sample["json"])


def test_stored_tokens_are_the_teacher_of_the_stored_bytes(whole: Whole) -> None:
    import torch

    sample = Cache.open(whole[0]).read(1, 3)
    pixels = torch.from_numpy(decode(sample.jpeg)[None])
    features = TinyTeacher()(pixels)
    np.testing.assert_allclose(sample.patches, features.patches[0], rtol=2**-10, atol=1e-6)
    np.testing.assert_allclose(sample.cls, features.cls[0], rtol=2**-10, atol=1e-6)


def test_two_views_differ(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    assert all(cache.read(0, i).sid == cache.read(1, i).sid for i in range(cache.num_samples))
    assert all(cache.read(0, i).jpeg != cache.read(1, i).jpeg for i in range(cache.num_samples))


def test_a_complete_cache_is_left_alone(whole: Whole, images: Path) -> None:
    teacher, before = TinyTeacher(), tree(whole[0])
    report = build(config(images, whole[0]), teacher, quiet=True)
    assert teacher.calls == 0 and report.shards_built == 0
    assert "already complete" in report.lines()[0]
    assert report.errors == whole[1].errors
    assert tree(whole[0]) == before


def test_lost_and_damaged_shards_are_made_again(whole: Whole, images: Path, copy: Any) -> None:
    out = copy()
    (out / "v00/shard-000001.tar").unlink()
    index = out / "v01/shard-000002.parquet"
    data = bytearray(index.read_bytes())
    data[10] ^= 1
    index.write_bytes(data)
    (out / "plan.parquet").write_bytes(b"damaged")
    assert build(config(images, out), TinyTeacher(), quiet=True).shards_built == 2
    assert tree(out) == tree(whole[0])


SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.cache.support import TinyTeacher, config
from gkd_scale.cache.build import build

class Slow(TinyTeacher):
    def __call__(self, pixels):
        time.sleep(0.05)
        return super().__call__(pixels)

images, warm = map(Path, sys.argv[1:])
build(config(images, warm), TinyTeacher(), quiet=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        build(config(images, Path(line.strip())), Slow(), quiet=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_sigkill_at_random_moments_ends_in_the_same_bytes(whole: Whole, images: Path, tmp_path: Path) -> None:
    """Builders killed soon after they wrote 0 to 4 of 6 shards, 0.1 s each; then each cache is finished.

    The builders are forked from a warm process (lazy imports done), so that five kills cost one import.
    """
    random = Random(2026)
    command = [sys.executable, "-c", SCRIPT, str(images), str(tmp_path / "warm")]
    root, env = Path(__file__).parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    counts = []
    with subprocess.Popen(
        command, cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        for number in range(5):
            out = tmp_path / f"cache{number}"
            process.stdin.write(f"{out}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            while len(list(out.glob("v*/*.parquet"))) < number:
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert int(process.stdout.readline()) == -signal.SIGKILL
            assert not (out / "manifest.parquet").exists()
            counts.append(build(config(images, out), TinyTeacher(), quiet=True).shards_built)
            assert tree(out) == tree(whole[0])
        process.stdin.close()
    assert len(set(counts)) > 1, "the kills fell into different shards"


def test_an_image_that_vanishes_between_two_views_is_noticed(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "cache"
    write_images(images, 8)
    victim = make_plan(images, config(images, out).samples_per_shard).shard(1)[-1].path
    data = (images / victim).read_bytes()

    class Vandal(TinyTeacher):
        def __call__(self, pixels: Any) -> Any:
            if self.calls == 4:  # two shards of two batches: the first view is done
                (images / victim).write_bytes(bytes(len(data)))
            return super().__call__(pixels)

    with pytest.raises(CacheError, match=f"{victim} could be read for one view and not for another"):
        build(config(images, out, workers=0), Vandal(), quiet=True)
    assert not (out / "manifest.parquet").exists()
    (images / victim).write_bytes(data)
    assert build(config(images, out), TinyTeacher(), quiet=True).shards_built == 2
    build(config(images, tmp_path / "undisturbed"), TinyTeacher(), quiet=True)
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_no_readable_image_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "cache"
    images.mkdir()
    for i in range(5):
        (images / f"{i}.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match="none of the 5 images could be read"):
        build(config(images, out), TinyTeacher(), quiet=True)
    assert not out.exists()


@pytest.mark.parametrize(("name", "limit"), [("tar", 3000), ("first file", 10)])
def test_a_full_disk_is_one_clear_error_and_the_build_goes_on(
    whole: Whole, images: Path, tmp_path: Path, name: str, limit: int
) -> None:
    """A file size limit makes the kernel refuse writes, as a full disk does."""
    out = tmp_path / name
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DiskFullError, match="no space left"):
            build(config(images, out), TinyTeacher(), quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.rglob("*.part")) and not (out / "manifest.parquet").exists()
    build(config(images, out), TinyTeacher(), quiet=True)
    assert tree(out) == tree(whole[0])


def test_unknown_codec_names_the_nearest(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'fp16'"):
        build(config(images, tmp_path / "cache", codec="pf16"), TinyTeacher(), quiet=True)
    assert not (tmp_path / "cache").exists()


def test_spec_file_is_readable_json(whole: Whole) -> None:
    spec = json.loads((whole[0] / "cache.json").read_text())["spec"]
    assert (spec["grid"], spec["dim"], spec["images"], spec["codec"]) == ([4, 6], 12, 12, "fp16")


def test_the_cache_may_lie_inside_the_image_folder(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    out = tmp_path / "cache"
    for _ in range(2):
        assert build(config(tmp_path, out), TinyTeacher(), quiet=True).images == 3
