"""Batches that carry encoded tokens are, after decoding, the batches that the reading threads decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gkd_scale.cache.build import build
from gkd_scale.cache.encoded import EncodedBatch
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import open_caches
from gkd_scale.engine.feed import map_tensors

from .support import TinyTeacher, config


@pytest.fixture(scope="module")
def caches(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One cache of each codec, of the same images."""
    out = tmp_path_factory.mktemp("encoded")
    names = ("fp16", "bf16", "int8", "fp8", "pca3", "tc2.2")
    for name in names:
        build(config(images, out / name, codec=name), TinyTeacher(gain=5.0), quiet=True)
    return {name: out / name for name in names}


def source(paths: list[Path], encoded: bool, **options: object) -> CachedSource:
    return CachedSource(
        open_caches(paths),
        global_batch=5,
        micro_batch=5,
        encoded=encoded,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "codecs", [["bf16"], ["int8"], ["fp8"], ["pca3"], ["tc2.2"], ["fp16", "int8", "tc2.2", "pca3"]]
)
def test_an_encoded_batch_decodes_to_the_same_batch(codecs: list[str], caches: dict[str, Path]) -> None:
    paths = [caches[codec] for codec in codecs]
    plain, compact = source(paths, False), source(paths, True)
    for batch, other in zip(plain.batches(0, 9), compact.batches(0, 9), strict=True):
        assert isinstance(other, EncodedBatch) and (other.sids, other.epochs) == (batch.sids, batch.epochs)
        copy = map_tensors(other, torch.Tensor.clone)  # as on the way to a device
        assert isinstance(copy, EncodedBatch)
        back = copy.decode()
        assert type(back) is type(batch) and back.positions == batch.positions
        assert torch.equal(back.pixels, batch.pixels) and torch.equal(back.teacher.cls, batch.teacher.cls)
        assert back.teacher.patches.dtype == torch.float16
        torch.testing.assert_close(back.teacher.patches, batch.teacher.patches, rtol=2**-9, atol=2e-3)


def test_tokens_that_need_no_decoding_are_read_into_place(caches: dict[str, Path]) -> None:
    plain, compact = source([caches["fp16"]], False), source([caches["fp16"]], True)
    (batch,), (other,) = plain.batches(0, 1), compact.batches(0, 1)
    assert type(other) is type(batch) and torch.equal(other.teacher.patches, batch.teacher.patches)


def test_damaged_samples_are_skipped_alike(caches: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    out = Path(shutil.copytree(caches["int8"], tmp_path / "damaged"))
    tar = out / "v00/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    plain, compact = (source([out], flag, skip_corrupt=True) for flag in (False, True))
    for batch, other in zip(plain.batches(0, 4), compact.batches(0, 4), strict=True):
        assert other.sids == batch.sids
    assert plain.skipped == compact.skipped and len(plain.skipped) == 1
    assert np.unique(list(plain.skipped)).size
