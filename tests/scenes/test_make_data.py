"""make-data: whole files, the same bytes however often it was interrupted, and no mixing of settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd_scale import scenes
from gkd_scale.errors import ConfigError, DataError
from gkd_scale.scenes.make_data import write_data
from gkd_scale.segment.datasets.registry import open_dataset

SMALL: dict[str, Any] = {"size": (32, 48), "proxy": 4, "train": 3, "val": 2, "test": 2, "seed": 5}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "out"
    write_data(out, **SMALL)
    return out


def test_the_layout(data: Path) -> None:
    assert sorted(path.name for path in data.iterdir()) == sorted(
        ["data.json", "proxy", "source", *scenes.UNSEEN]
    )
    assert len(list((data / "proxy").glob("*.png"))) == 4
    for folder, count in (("source/train", 3), ("source/val", 2), *((name, 2) for name in scenes.UNSEEN)):
        for adapter in ("folder", "embedded"):
            dataset = open_dataset(f"{adapter}:{data / folder}")
            assert len(dataset) == count
            assert tuple(dataset.classes) == scenes.CLASSES
    manifest = json.loads((data / "data.json").read_text())
    assert manifest["counts"]["source/train"] == 3 and manifest["size"] == [32, 48] and manifest["seed"] == 5


def test_files_hold_what_the_generator_renders(data: Path) -> None:
    train = open_dataset(f"embedded:{data / 'source/train'}")[1]
    image, label = scenes.render("source", scenes.SPLITS["train"][1], (32, 48), 5)
    np.testing.assert_array_equal(train.image, image)
    np.testing.assert_array_equal(train.label, label)
    val = open_dataset(f"embedded:{data / 'source/val'}")[1]
    np.testing.assert_array_equal(val.image, scenes.render("source", scenes.SPLITS["val"][1], (32, 48), 5)[0])


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(data: Path, tmp_path: Path, stop_at: int) -> None:
    class Stop(Exception):
        pass

    def stop(count: int, _total: int) -> None:
        if count == stop_at:
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        write_data(out, **SMALL, progress=stop)
    assert not (out / "data.json").exists()
    (out / "proxy" / "00003.png.part").parent.mkdir(exist_ok=True)
    mtime = (out / "proxy" / "00000.png").stat().st_mtime_ns
    write_data(out, **SMALL)
    assert contents(out) == contents(data)
    assert (out / "proxy" / "00000.png").stat().st_mtime_ns == mtime


def test_a_damaged_or_missing_file_is_made_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_data(out, **SMALL)
    victim = out / "unseen_fog" / "labels" / "00001.png"
    victim.write_bytes(victim.read_bytes()[:-20])
    (out / "proxy" / "00002.png").unlink()
    write_data(out, **SMALL)
    assert contents(out) == contents(data)


@pytest.mark.parametrize("change", [{"seed": 6}, {"size": (48, 48)}, {"train": 4}, {"test": 1}])
def test_other_settings_are_refused(data: Path, change: dict[str, Any]) -> None:
    before = contents(data)
    with pytest.raises(DataError, match="holds other data"):
        write_data(data, **{**SMALL, **change})
    assert contents(data) == before


def test_other_settings_are_refused_while_unfinished(tmp_path: Path) -> None:
    def stop(_count: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_data(tmp_path / "out", **SMALL, progress=stop)
    with pytest.raises(DataError, match="seed is 5"):
        write_data(tmp_path / "out", **{**SMALL, "seed": 6})


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="did not write"):
        write_data(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}
    with pytest.raises(DataError, match="is a file"):
        write_data(tmp_path / "thesis.tex", **SMALL)


@pytest.mark.parametrize("change", [{"train": 0}, {"size": (16, 64)}, {"proxy": -1}])
def test_impossible_settings_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        write_data(tmp_path / "out", **{**SMALL, **change})
    assert not (tmp_path / "out").exists()
