"""What ``import gkd_scale`` offers, and what it costs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import gkd_scale
from gkd_scale.errors import ConfigError
from tests.conftest import BIN, ROOT, TINY, Result, run, write_images
from tests.segment.support import Blocks, write_folder


def test_every_public_name_is_there_and_unknown_ones_are_not() -> None:
    for name in gkd_scale.__all__:
        assert getattr(gkd_scale, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'load_segmentor'"):
        gkd_scale.load_segmentor  # noqa: B018


def test_the_import_alone_loads_no_torch() -> None:
    code = "import sys, gkd_scale; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


SCRIPT = """
import os, sys
import gkd_scale

cache = gkd_scale.Cache.open("cache")
tiny = {"student_args": %(tiny)r, "global_batch": 4, "ema": 0.5, "log": ["none"]}
for out in ("first", "second", "first"):  # the last is done already
    backbone = gkd_scale.distill("cache", "vit_tiny_patch16_224", out, steps=3, optim={"lr": 1e-3}, **tiny)
print("backbone", type(backbone).__name__, backbone.channels)
segmenter = gkd_scale.train_head(
    "first", "folder:data", "folder:data", "head", steps=2, global_batch=2, image_size="32x48", log=["none"]
)
scores = gkd_scale.evaluate("head", {"night": "folder:data"})
print("scored", list(scores), segmenter.predict("data/images/000.png").shape)
print("left", [name for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if name in os.environ])
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> tuple[Path, Result]:
    """A script that does everything in one process."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "cache").symlink_to(tiny_cache)
    write_folder(folder / "data", Blocks(4))
    script = folder / "script.py"
    script.write_text(SCRIPT % {"tiny": TINY})
    return folder, run([BIN / "python", script], folder)


def test_everything_runs_in_one_process_and_goes_on(ran: tuple[Path, Result]) -> None:
    folder, result = ran
    assert result.code == 0, result.text
    assert "backbone Backbone (48, 48, 48, 48)" in result.text and "first is already complete" in result.text
    assert "scored ['night'] (32, 48)" in result.text and "left []" in result.text
    assert f"deepspeed {ROOT / 'launchers/stage2.py'}" in result.text
    first, second = ((folder / name / "backbone.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second, "the second training in a process is as the first"


def test_cache_teacher_is_the_command(tmp_path: Path, tiny_teacher: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    cache = gkd_scale.cache_teacher(
        images,
        "vit_tiny_patch16_224",
        tmp_path / "cache",
        teacher_weights=tiny_teacher,
        teacher_args=TINY,
        image_size="32x48",
        views=2,
    )
    assert len(cache) == 6 and cache.views == 2
    with pytest.raises(ConfigError, match="image_sise"):
        gkd_scale.cache_teacher(images, "vit_tiny_patch16_224", tmp_path / "other", image_sise="32")


def test_a_cache_is_a_dataset_of_every_view(tiny_cache: Path) -> None:
    cache = gkd_scale.Cache.open(tiny_cache)
    assert len(cache) == 24
    item = cache[13]
    assert item.sid == cache.sid(1) and item.pixels.shape == (3, 32, 48) and item.pixels.dtype == torch.uint8
    assert item.cls.shape == (48,) and item.patches.shape == (6, 48) and item.patches.dtype == torch.float16
    sample = cache.read(1, 1)
    torch.testing.assert_close(item.patches, torch.from_numpy(sample.patches), rtol=0, atol=0)
    assert cache[-1].sid == cache[23].sid
    with pytest.raises(IndexError):
        cache[24]
    again = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(again[13].cls, item.cls, rtol=0, atol=0)
    loader = DataLoader(cache, batch_size=5, num_workers=1)  # type: ignore[arg-type]
    sids = [sid for batch in loader for sid in batch.sid]
    assert len(sids) == 24 and sorted(sids[:12]) == sorted(sids[12:])


def test_training_in_one_process_is_refused_inside_a_rank_of_several(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a rank of several"):
        gkd_scale.distill(tiny_cache, "vit_tiny_patch16_224", tmp_path / "run", steps=1)
    assert os.environ["WORLD_SIZE"] == "2" and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="none is given"):
        gkd_scale.distill([], "vit_tiny_patch16_224", tmp_path / "run")
