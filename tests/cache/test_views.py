from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gkd_scale.cache import augment
from gkd_scale.cache.config import CacheTeacherConfig, ViewConfig, parse_size
from gkd_scale.cache.views import crop_box, make_view
from gkd_scale.config import build, parse
from gkd_scale.errors import ConfigError

from .support import image_of

SID = "0123456789abcdef"
SHAPE = (40, 60)


def picture(width: int = 90, height: int = 70) -> Image.Image:
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------- pixels


def test_a_view_is_a_pure_function_of_seed_view_and_sid() -> None:
    one = make_view(picture(), SID, 0, SHAPE, ViewConfig(), 0)
    assert one == make_view(picture(), SID, 0, SHAPE, ViewConfig(), 0)
    for sid, view, seed in [("f" * 16, 0, 0), (SID, 1, 0), (SID, 0, 1)]:
        assert make_view(picture(), sid, view, SHAPE, ViewConfig(), seed).jpeg != one.jpeg


def test_the_decoded_view_is_the_recorded_crop_and_flip() -> None:
    cfg = ViewConfig(color=0, quality=100)
    for view in range(6):
        result = make_view(picture(), SID, view, SHAPE, cfg, 0)
        left, top, width, height = result.params["crop"]
        expected = (
            picture().crop((left, top, left + width, top + height)).resize((60, 40), Image.Resampling.BICUBIC)
        )
        if result.params["flip"]:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        error = np.abs(image_of(result.jpeg).astype(int) - np.asarray(expected).astype(int))
        assert error.mean() < 2.5
    flips = [make_view(picture(), SID, view, SHAPE, cfg, 0).params["flip"] for view in range(20)]
    assert {True, False} == set(flips)


def test_color_is_recorded_and_changes_brightness() -> None:
    plain = make_view(picture(), SID, 0, SHAPE, ViewConfig(color=0), 0)
    vivid = make_view(picture(), SID, 0, SHAPE, ViewConfig(color=0.3), 0)
    assert plain.params["color"] == [] and len(vivid.params["color"]) == 3
    assert plain.params["crop"] == vivid.params["crop"]
    brightness = image_of(vivid.jpeg).mean() / image_of(plain.jpeg).mean()
    assert brightness == pytest.approx(vivid.params["color"][0], abs=0.05)


@pytest.mark.parametrize("name", list(augment._OPERATIONS))
def test_each_randaugment_operation_changes_pixels_as_recorded(name: str) -> None:
    """Among the views of some sids each operation is drawn, in both directions where it has two."""
    operations = [op for n in range(200) for op in augment.draw(f"{n:016x}", 0, 0, 3, 9.0) if op[0] == name]
    values = {value for _, value in operations}
    assert len(operations) > 5
    dull = picture().point([40 + value // 2 for value in range(256)] * 3)
    assert augment.apply(dull, operations[:1]).size == dull.size
    difference = np.asarray(augment.apply(dull, operations[:1])) != np.asarray(dull)
    assert difference.mean() > 0.01
    if name not in ("autocontrast", "equalize", "invert"):
        assert len(values) > 5


def test_randaugment_is_recorded_and_off_by_default() -> None:
    cfg = ViewConfig(randaugment=2, quality=100)
    views = [make_view(picture(), SID, view, SHAPE, cfg, 0) for view in range(40)]
    counts = [len(view.params["randaugment"]) for view in views]
    assert set(counts) == {0, 1, 2} and 0.7 < np.mean(counts) < 1.3
    plain = make_view(picture(), SID, 5, SHAPE, ViewConfig(quality=100), 0)
    assert plain.params["randaugment"] == []
    operations = [tuple(op) for op in views[5].params["randaugment"]]
    expected = np.asarray(augment.apply(Image.fromarray(image_of(plain.jpeg)), operations)).astype(int)
    assert np.abs(image_of(views[5].jpeg) - expected).mean() < 4


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "shards").glob("*.yaml")), ids=lambda path: path.stem
)
def test_recipes_are_whole(path: Path) -> None:
    argv = ["--config", str(path), "--images", "i", "--out", "o"]
    cfg = parse(CacheTeacherConfig, argv, prog="gkd-scale cache-teacher", description="")
    assert cfg.size in [(224, 224), (512, 512)]
    view = make_view(picture(), SID, 0, SHAPE, cfg.view, 0)
    assert image_of(view.jpeg).shape == (*SHAPE, 3)


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 64),
    st.integers(1, 64),
    st.integers(0, 99),
    st.sampled_from(["random", "center"]),
)
def test_crops_lie_inside_the_image(
    width: int, height: int, rows: int, columns: int, view: int, crop: str
) -> None:
    cfg = ViewConfig(crop=crop)
    left, top, w, h = crop_box((width, height), SID, view, (rows, columns), cfg, 0)
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1 and left + w <= width and top + h <= height


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_random_crops_keep_scale_and_aspect(view: int) -> None:
    _, _, width, height = crop_box((900, 600), SID, view, (400, 600), ViewConfig(), 0)
    assert 0.34 < width * height / (900 * 600) <= 1.0
    assert 0.74 < width / height / 1.5 < 1.35


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_make_views(size: tuple[int, int]) -> None:
    view = make_view(Image.new("RGB", size, "red"), SID, 0, SHAPE, ViewConfig(), 0)
    assert image_of(view.jpeg).shape == (*SHAPE, 3)


# -------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), (224, (224, 224)), ("144x192", (144, 192)), (" 8X9 ", (8, 9))]
)
def test_sizes(text: str | int, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "x", "12x", "-3", "1.5", "99999", "12x12x12", "12 12"])
def test_nonsense_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size in pixels"):
        parse_size(text)


def test_flags() -> None:
    text = "--images i --out o --image-size 8x9 --mean 0.1 0.2 0.3 --view.scale 0.5 0.9 --views 3"
    argv = text.split()
    cfg = parse(CacheTeacherConfig, argv, prog="gkd-scale cache-teacher", description="")
    assert (cfg.size, cfg.teacher.mean, cfg.view.scale, cfg.views) == ((8, 9), (0.1, 0.2, 0.3), (0.5, 0.9), 3)
    assert cfg.codec == "fp16" and 1 <= cfg.threads <= 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("views", 0),
        ("batch_size", 0),
        ("image_size", "big"),
        ("view", {"scale": [0.9, 0.1]}),
        ("view", {"crop": "middle"}),
        ("view", {"quality": 0}),
        ("std", [0, 1, 1]),
        ("workers", -1),
    ],
)
def test_impossible_options_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        build(CacheTeacherConfig, {"images": "i", "out": "o", "image_size": 8, key: value})
