from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from gkd_scale.cache.inspect import contact_sheet, describe, rgb_maps
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.stats import STATS, measure, write_stats

from .support import image_of

Whole = tuple[Path, BuildReport]


def test_the_description_names_teacher_sizes_and_errors(whole: Whole) -> None:
    text = "\n".join(describe(Cache.open(whole[0])))
    for part in (
        "model tiny",
        "4x6 of 12 channels, codec fp16",
        "2 of 32x48",
        "10 of 12 readable",
        "6 shards",
    ):
        assert part in text, part


def test_the_sheet_shows_stored_views_beside_their_maps(whole: Whole, tmp_path: Path) -> None:
    cache = Cache.open(whole[0])
    contact_sheet(cache, tmp_path / "sheet.png", samples=5, view=1)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (32 + 4) + 4, 4 * (2 * 48 + 8) + 4, 3)
    for at, (top, left) in enumerate([(4, 4), (4, 108), (4, 212), (4, 316), (40, 4)]):
        view = image_of(cache.read(1, at * 10 // 5).jpeg)
        np.testing.assert_array_equal(sheet[top : top + 32, left : left + 48], view)
        tokens = sheet[top : top + 32, left + 48 : left + 96].reshape(4, 8, 6, 8, 3)
        assert (tokens == tokens[:, :1, :, :1]).all(), "one colour a token"
        assert len(np.unique(tokens[:, 0, :, 0].reshape(-1, 3), axis=0)) > 12


def test_equal_tokens_have_equal_colours_in_all_images() -> None:
    tokens = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    one, two = rgb_maps([tokens, tokens[::-1]], (2, 3))
    np.testing.assert_array_equal(one, two[::-1, ::-1])
    assert len(np.unique(one.reshape(-1, 3), axis=0)) == 6
    (flat,) = rgb_maps([np.ones((4, 2), np.float32)], (2, 2))
    assert (flat == flat[0, 0]).all()


def test_stats_are_those_of_all_tokens(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    stats = measure(cache, quiet=True)
    samples = [cache.read(view, i) for view in range(2) for i in range(10)]
    patches = np.concatenate([sample.patches for sample in samples]).astype(np.float64)
    cls = np.stack([sample.cls for sample in samples]).astype(np.float64)
    for moments, values in ((stats.patch, patches), (stats.cls, cls)):
        assert moments.count == len(values)
        np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moments.covariance, np.cov(values.T, bias=True), rtol=1e-3, atol=1e-6)
    assert "patch: 480 tokens of 12 channels" in stats.lines()[0] and "90% in" in stats.lines()[1]


def test_stats_go_to_a_file_that_names_the_spec(whole: Whole, tmp_path: Path) -> None:
    cache = Cache.open(whole[0])
    stats = measure(cache, quiet=True)
    write_stats(tmp_path / STATS, stats, cache.spec.hash())
    with safe_open(tmp_path / STATS, framework="numpy") as file:
        assert file.metadata() == {"spec": cache.spec.hash()}
        assert file.get_tensor("patch.covariance").shape == (12, 12)
        np.testing.assert_allclose(file.get_tensor("cls.mean"), stats.cls.mean, rtol=1e-6)
        assert set(file.keys()) == {
            f"{t}.{n}" for t in ("patch", "cls") for n in ("mean", "std", "covariance", "norm")
        }
