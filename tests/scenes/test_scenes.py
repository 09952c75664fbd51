"""The embedded scenes: pure, complete, true to their geometry; and the teacher that was trained on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale import scenes
from gkd_scale.errors import DataError
from gkd_scale.files import sha256_file
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.spec import WEIGHTS
from gkd_scale.randomness import generator, seed_of
from gkd_scale.types import Size, UInt8Array

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, POLE, PEDESTRIAN = range(8)


@cache
def sample(domain: str, count: int = 12) -> tuple[UInt8Array, UInt8Array]:
    """Images (n, H, W, 3) and labels (n, H, W)."""
    images, labels = zip(*(scenes.render(domain, index) for index in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


@settings(max_examples=12, deadline=None)
@given(
    domain=st.sampled_from(scenes.DOMAINS),
    index=st.integers(0, 1 << 40),
    size=st.tuples(st.integers(32, 80), st.integers(32, 100)),
    seed=st.integers(0, 1 << 40),
)
def test_a_scene_is_a_pure_function_of_its_name(domain: str, index: int, size: Size, seed: int) -> None:
    image, label = scenes.render(domain, index, size, seed)
    again, label_again = scenes.render(domain, index, size, seed)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert label.max() < len(scenes.CLASSES)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    for other in ((domain, index + 1, size, seed), (domain, index, size, seed + 1)):
        assert not np.array_equal(scenes.render(*other)[0], image)


MEANS = {
    "source": (115.85, 119.24, 116.67, 2.232),
    "unseen_night": (55.71, 53.54, 58.85, 1.902),
    "unseen_fog": (149.74, 151.99, 153.21, 1.958),
    "unseen_rain": (77.64, 81.22, 84.24, 1.921),
    "unseen_snow": (162.31, 164.09, 173.62, 2.237),
    "unseen_city": (131.28, 121.02, 96.52, 2.170),
}
"""Mean red, green, blue and label of the first four scenes of a domain, from ``GENERATOR`` 1."""


def test_the_pictures_are_those_of_this_generator() -> None:
    """A change of the pictures raises ``GENERATOR``; what a processor rounds otherwise is no change."""
    assert scenes.GENERATOR == 1
    for domain, (*colour, label) in MEANS.items():
        images, labels = sample(domain, 4)
        assert images.mean((0, 1, 2)) == pytest.approx(colour, abs=0.05)
        assert labels.mean() == pytest.approx(label, abs=0.005)
    images, labels = zip(*map(scenes.render_random, range(8)), strict=True)
    assert np.mean(images, (0, 1, 2)) == pytest.approx((96.79, 102.11, 107.97), abs=0.05)
    assert np.mean(labels) == pytest.approx(2.037, abs=0.005)
    proxies = [scenes.render_proxy(index) for index in range(8)]
    assert np.mean(proxies, (0, 1, 2)) == pytest.approx((101.64, 87.03, 87.61), abs=0.05)


def test_domains_differ_and_the_proxy_set_is_pure() -> None:
    labels = [scenes.render(domain, 3)[1].tobytes() for domain in scenes.DOMAINS]
    assert len(set(labels)) == len(labels)
    proxies = [scenes.render_proxy(index).tobytes() for index in range(20)]
    assert len(set(proxies)) == 20
    assert scenes.render_proxy(7).tobytes() == proxies[7]
    assert scenes.render_proxy(7, seed=1).tobytes() != proxies[7]
    assert scenes.render_proxy(0, (40, 64)).shape == (40, 64, 3)


@pytest.mark.parametrize("domain", scenes.DOMAINS)
def test_every_class_occurs_and_none_takes_all(domain: str) -> None:
    labels = sample(domain, 30)[1]
    share = np.bincount(labels.ravel(), minlength=8) / labels.size
    assert (share > 0.002).all(), dict(zip(scenes.CLASSES, share, strict=True))
    assert share.max() < 0.6
    assert len(scenes.CLASSES) == len(scenes.PALETTE) == 8


def test_an_unknown_domain_names_the_nearest() -> None:
    with pytest.raises(DataError, match="unseen_fog"):
        scenes.render("unseen_frog", 0)


def test_sky_is_above_and_road_below() -> None:
    labels = sample("source")[1]
    rows = np.arange(labels.shape[1])[None, :, None]
    horizon = 0.62 * labels.shape[1]
    assert ((labels == SKY) & (rows > horizon)).sum() == 0
    assert ((labels == ROAD) & (rows < 0.3 * labels.shape[1])).sum() == 0
    mean_row = {c: float((rows * (labels == c)).sum() / (labels == c).sum()) for c in (SKY, BUILDING, ROAD)}
    assert mean_row[SKY] < mean_row[BUILDING] < mean_row[ROAD]


def test_label_edges_are_image_edges() -> None:
    """The image changes more across a border of two labels than inside one; a shifted label loses that."""
    images, labels = sample("source")
    change = np.abs(np.diff(images.astype(np.int16), axis=2)).sum(axis=-1)

    def contrast(label: UInt8Array) -> float:
        border = np.diff(label.astype(np.int16), axis=2) != 0
        return float(change[border].mean() / change[~border].mean())

    sharpness = contrast(labels)
    assert sharpness > 2.0
    assert sharpness > 1.3 * contrast(np.roll(labels, 3, axis=2))


def test_each_unseen_domain_has_its_physics() -> None:
    def brightness(domain: str) -> float:
        return float(sample(domain)[0].mean())

    def spread(domain: str) -> float:
        """Contrast inside an image, on average."""
        return float(sample(domain)[0].mean(axis=-1).std(axis=(1, 2)).mean())

    def ground(domain: str) -> float:
        images, labels = sample(domain)
        return float(images[(labels == ROAD) | (labels == SIDEWALK)].mean())

    assert brightness("unseen_night") < 0.5 * brightness("source")
    assert brightness("unseen_rain") < 0.85 * brightness("source")
    assert spread("unseen_fog") < 0.75 * spread("source")
    assert ground("unseen_snow") > 1.4 * ground("source")
    images, labels = sample("unseen_city")
    home_images, home_labels = sample("source")
    assert (labels == BUILDING).mean() > 1.2 * (home_labels == BUILDING).mean()
    colour = np.ptp(images[labels == BUILDING].astype(np.int16), axis=-1).mean()
    assert colour > 1.3 * np.ptp(home_images[home_labels == BUILDING].astype(np.int16), axis=-1).mean()


def test_fog_thickens_with_distance() -> None:
    """High on the road is far away: there the road is nearer to the colour of the air than close by."""
    images, labels = sample("unseen_fog")
    height = labels.shape[1]
    rows = np.broadcast_to(np.arange(height)[None, :, None], labels.shape)
    road = labels == ROAD
    far, near = images[road & (rows < 0.6 * height)], images[road & (rows > 0.85 * height)]
    assert far.mean() > near.mean() + 8


def test_semantics_cannot_be_read_off_position() -> None:
    """The best label for each pixel of the frame, known from other scenes, misses much of every scene."""
    labels = sample("source", 30)[1]
    counts = np.stack([(labels[:20] == c).sum(axis=0) for c in range(8)])
    guess = counts.argmax(axis=0)
    classes = [c for c in range(8) if c in (CAR, POLE, PEDESTRIAN)]
    assert all(((guess == c) & (labels[20:] == c)).sum() < 0.6 * (labels[20:] == c).sum() for c in classes)


def test_training_and_testing_share_no_scene() -> None:
    """Generators of different names never meet, and no random style is a named one."""
    train, val = scenes.SPLITS["train"], scenes.SPLITS["val"]
    assert not set(range(train.start, train.stop, 1000)) & set(range(val.start, val.stop, 1000))
    assert train.stop <= val.start
    names = ("random", "proxy", *scenes.DOMAINS)
    seeds = [
        seed_of("scenes", name, seed, index) for name in names for seed in (0, 1) for index in range(300)
    ]
    assert len(set(seeds)) == len(seeds)
    assert "random" not in scenes.DOMAINS
    styles = [scenes.random_style(generator("test", index)) for index in range(200)]
    assert not {*styles} & {*scenes.STYLES.values()}
    assert len({*styles}) == 200


def test_random_styles_cover_more_than_any_domain() -> None:
    images = np.stack([scenes.render_random(index)[0] for index in range(40)])
    brightness = images.mean(axis=(1, 2, 3))
    assert brightness.min() < 60 and brightness.max() > 140


# --- the shipped teacher ------------------------------------------------------------------------


def test_the_teacher_is_small_and_is_what_its_card_says() -> None:
    weights, card = _teacher_files()
    assert weights.stat().st_size <= 2_000_000
    assert card["sha256"] == sha256_file(weights)
    assert card["image_size"] == [*scenes.SIZE]
    assert set(card["miou"]["teacher, linear probe"]) == set(scenes.DOMAINS)


def test_the_teacher_loads_strictly_through_plain_timm() -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file

    weights, card = _teacher_files()
    net = timm.create_model(card["architecture"], **card["args"])
    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    assert not any(net.load_state_dict(state, strict=True))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    tokens = net.eval().forward_features(torch.zeros(1, 3, *card["image_size"]))
    assert tokens.shape == (1, 1 + 12 * 16, card["args"]["embed_dim"])


def test_its_tokens_tell_classes_apart_on_unseen_domains() -> None:
    """Nearest class mean of source tokens: a mean recall of over twice chance, on every unseen domain."""
    teacher = load_teacher(TeacherConfig("demo_teacher"), scenes.SIZE, "cpu")

    def tokens(domain: str, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit tokens (n, C) and classes (n,) of patches that hold one class alone."""
        images, labels = zip(*(scenes.render(domain, index) for index in indices), strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        patches = teacher(pixels).patches.flatten(0, 1)
        blocks = torch.from_numpy(np.stack(labels)).unfold(1, 8, 8).unfold(2, 8, 8).reshape(-1, 64).long()
        pure = (blocks == blocks[:, :1]).all(1)
        return torch.nn.functional.normalize(patches[pure], dim=1), blocks[pure, 0]

    features, classes = tokens("source", range(16))
    present = classes.unique()
    means = torch.stack([features[classes == c].mean(0) for c in present])
    for domain in scenes.UNSEEN:
        vectors, truth = tokens(domain, range(4))
        guess = present[(vectors @ torch.nn.functional.normalize(means, dim=1).T).argmax(1)]
        recall = torch.stack([(guess[truth == c] == c).float().mean() for c in truth.unique()])
        assert recall.mean() > 2 / len(recall), (domain, recall)


def _teacher_files() -> tuple[Path, dict]:  # type: ignore[type-arg]
    return WEIGHTS / "demo_teacher.safetensors", yaml.safe_load((WEIGHTS / "demo_teacher.yaml").read_text())
