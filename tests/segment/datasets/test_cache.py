"""``cache:PATH``: a cache made of a labelled dataset is a labelled dataset."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gkd_scale.cache.plan import sid_of
from gkd_scale.cli import main
from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.registry import open_dataset, subset
from gkd_scale.types import IGNORE
from tests.conftest import cache_flags
from tests.segment.support import CLASSES, COLOURS, Blocks, picture, write_folder


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """``centre``: one centred view of each image; ``random``: two random ones."""
    folder = tmp_path_factory.mktemp("labelled")
    write_folder(folder / "data", Blocks(3))
    (folder / "data/absent.txt").write_text(f"{CLASSES[3]}\n")
    centre = ("--view.crop", "center", "--view.flip", "0", "--views", "1")
    plain = ("--view.color", "0", "--view.quality", "100")
    for name, more in (("centre", centre), ("random", ())):
        flags = cache_flags(Path(f"folder:{folder}/data"), tiny_teacher, folder / name)
        assert main(["cache-teacher", *map(str, flags), *plain, *more]) == 0
    return folder


def test_a_centred_view_of_the_images_own_shape_is_the_dataset(caches: Path) -> None:
    dataset, original = open_dataset(f"cache:{caches}/centre"), Blocks(3)
    assert list(dataset.absent) == [CLASSES[3]]
    assert (len(dataset), list(dataset.classes), list(dataset.palette)) == (
        3,
        list(CLASSES),
        list(open_dataset(f"folder:{caches}/data").palette),
    )
    names = [open_dataset(f"folder:{caches}/data")[index].name for index in range(3)]
    views = {view.name: view for view in (dataset[index] for index in range(3))}
    for index, name in enumerate(names):
        view = views[f"{sid_of(f'{index:06d}-{name}')}-v00"]
        np.testing.assert_array_equal(view.label, original[index].label)
        assert np.abs(view.image.astype(int) - original[index].image).mean() < 3


def test_what_occurs_in_no_label_is_no_part_of_a_caches_identity(caches: Path, tiny_teacher: Path) -> None:
    """Naming other classes absent does not make the shards anew."""
    flags = cache_flags(Path(f"folder:{caches}/data"), tiny_teacher, caches / "random")
    (caches / "data/absent.txt").unlink()
    try:
        again = ["--view.color", "0", "--view.quality", "100"]
        assert main(["cache-teacher", *map(str, flags), *again]) == 0
    finally:
        (caches / "data/absent.txt").write_text(f"{CLASSES[3]}\n")


def test_random_views_keep_image_and_label_together(caches: Path) -> None:
    dataset = open_dataset(f"cache:{caches}/random")
    assert len(dataset) == 6 and len({dataset[index].name for index in range(6)}) == 6
    for index in range(6):
        sample = dataset[index]
        distance = np.abs(sample.image[:, :, None].astype(int) - COLOURS).sum(-1)
        valid = sample.label != IGNORE
        assert (distance.argmin(-1) == sample.label)[valid].mean() > 0.85
        assert sample.image.shape == picture(sample.label).shape
    with pytest.raises(IndexError):
        dataset[6]


def test_a_fraction_of_the_labels_is_one_of_the_images_with_all_their_views(caches: Path) -> None:
    dataset = subset(open_dataset(f"cache:{caches}/random"), Fraction(1, 3))
    names = [dataset[index].name for index in range(len(dataset))]
    assert len(names) == 2 and len({name.rpartition("-v")[0] for name in names}) == 1


def test_a_cache_without_labels_is_refused(tiny_cache: Path) -> None:
    with pytest.raises(DataError, match="holds no labels"):
        open_dataset(f"cache:{tiny_cache}")
