"""``--images cache:CACHE``: another teacher over the pixels that a cache stores."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from gkd_scale.cache.build import build, plan_of
from gkd_scale.cache.config import CacheTeacherConfig, RepairConfig, ViewConfig
from gkd_scale.cache.inspect import contact_sheet, describe
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.remote import push
from gkd_scale.cache.repair import repair
from gkd_scale.cache.rerun import rerun
from gkd_scale.cache.shard import parse_index
from gkd_scale.cache.source import LabelledSource
from gkd_scale.cache.spec import FORMAT, read_spec
from gkd_scale.cache.stats import measure
from gkd_scale.cache.stored import follow
from gkd_scale.cache.verify import verify
from gkd_scale.cli import main
from gkd_scale.config import build as build_config
from gkd_scale.distill.certify import CertifyConfig, certify
from gkd_scale.errors import CacheError, DamageError, DataError
from gkd_scale.estimate import probe
from tests.conftest import ROOT

from .support import TinyTeacher, config, tree
from .test_labels import Stripes

Whole = tuple[Path, BuildReport]


def other() -> TinyTeacher:
    """Another teacher than the one of the fixtures."""
    return TinyTeacher(dim=7, gain=2)


def over(cache: Path | str, out: Path, **changes: Any) -> CacheTeacherConfig:
    """The options of a cache of tokens over the pixels of ``cache``; nothing that ``cache`` decides."""
    return CacheTeacherConfig(f"cache:{cache}", out, batch_size=3, workers=2, **changes)


@pytest.fixture(scope="module")
def tokens(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the other teacher over the pixels of ``whole``; not to be changed."""
    out = tmp_path_factory.mktemp("tokens") / "tokens"
    build(over(whole[0], out), other(), quiet=True)
    return out


def rows(cache: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = pq.read_table(cache / "manifest.parquet").to_pylist()
    return records


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def damage_jpeg(cache: Path) -> str:
    """Flip a bit of a JPEG in v00/shard-000001.tar; the member's name."""
    index = parse_index((cache / "v00/shard-000001.parquet").read_bytes())
    member = next(member for member in index.members if member.member == "jpg")
    flip(cache / "v00/shard-000001.tar", member.offset + member.bytes // 2)
    return f"{member.sid}.jpg"


# ---------------------------------------------------------------------------------- what it holds


def test_its_tokens_are_those_of_a_cache_of_the_images(
    whole: Whole, tokens: Path, images: Path, tmp_path: Path
) -> None:
    build(config(images, tmp_path), other(), quiet=True)
    direct, indirect = Cache.open(tmp_path), Cache.open(tokens)
    assert indirect.shard_sizes == direct.shard_sizes == Cache.open(whole[0]).shard_sizes
    for view in range(2):
        for index in range(direct.num_samples):
            expected, sample = direct.read(view, index), indirect.read(view, index)
            assert sample.sid == expected.sid and sample.jpeg == b""
            np.testing.assert_array_equal(sample.patches, expected.patches)
            np.testing.assert_array_equal(sample.cls, expected.cls)
            about = [bytes(cache.read_members(view, index, ["json"])["json"]) for cache in (direct, indirect)]
            assert about[0] == about[1]


def test_plan_and_manifest_are_those_of_the_pixels(whole: Whole, tokens: Path) -> None:
    assert (tokens / "plan.parquet").read_bytes() == (whole[0] / "plan.parquet").read_bytes()
    assert rows(tokens) == rows(whole[0]) and sum(row["status"] == "error" for row in rows(tokens)) == 2
    spec, pixels = read_spec(tokens), read_spec(whole[0])
    assert (spec.plan, spec.views, spec.view, spec.seed) == (pixels.plan, pixels.views, pixels.view, 0)
    assert spec.pixels == {"manifest": Cache.open(whole[0]).manifest, "path": str(whole[0])}
    assert spec.pixels_of and pixels.pixels_of is None
    assert "pixels" not in json.loads((whole[0] / "cache.json").read_text())["spec"]


def test_its_tars_hold_no_pixels(tokens: Path) -> None:
    for path in tokens.glob("v*/*.tar"):
        with tarfile.open(path) as tar:
            assert {name.partition(".")[2] for name in tar.getnames()} == {"cls.npy", "json", "patch.npy"}


def test_the_teacher_sees_the_stored_bytes_whatever_became_of_the_images(
    whole: Whole, tmp_path: Path
) -> None:
    views: list[Tensor] = []

    class Recorder(TinyTeacher):
        def __call__(self, pixels: Tensor) -> Any:
            views.extend(pixels)
            return super().__call__(pixels)

    build(over(whole[0], tmp_path), Recorder(), quiet=True)
    pixels = Cache.open(whole[0])
    assert len(views) == len(pixels)
    assert all(torch.equal(views[place], pixels[place].pixels) for place in range(len(pixels)))


def test_the_estimate_counts_no_pixels(whole: Whole, tmp_path: Path) -> None:
    cfg = follow(over(whole[0], tmp_path))
    pixels, rest = probe(cfg, plan_of(cfg, None, FORMAT), images=12)
    assert len(pixels) == 10 and rest == 1024, "the JSON in its tar: a header and a block"


@pytest.mark.parametrize("codec", ["int8", "pca4"])
def test_codecs_are_fitted_to_the_stored_pixels(
    whole: Whole, images: Path, tmp_path: Path, codec: str
) -> None:
    build(config(images, tmp_path / "direct", codec=codec), other(), quiet=True)
    build(over(whole[0], tmp_path / "tokens", codec=codec), other(), quiet=True)
    direct, indirect = Cache.open(tmp_path / "direct"), Cache.open(tmp_path / "tokens")
    assert indirect.spec.codec_state == direct.spec.codec_state
    assert all(np.array_equal(indirect.read(1, i).patches, direct.read(1, i).patches) for i in range(10))


def test_a_cache_of_the_sorted_list_is_followed_too(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gkd_scale.cache.build.format_of", lambda _: 1)
    build(config(images, tmp_path / "old"), TinyTeacher(), quiet=True)
    monkeypatch.undo()
    build(over(tmp_path / "old", tmp_path / "new"), other(), quiet=True)
    assert read_spec(tmp_path / "new").format == 1 and rows(tmp_path / "new") == rows(tmp_path / "old")


def test_labels_stay_with_the_pixels(tmp_path: Path) -> None:
    cfg = config(Path("stripes:"), tmp_path / "pixels", view=ViewConfig(randaugment=2, crop="center"))
    build(cfg, TinyTeacher(), source=LabelledSource(Stripes()), quiet=True)
    build(over(tmp_path / "pixels", tmp_path / "tokens"), other(), quiet=True)
    spec, pixels = read_spec(tmp_path / "tokens"), read_spec(tmp_path / "pixels")
    assert spec.view == pixels.view and pixels.labels and not spec.labels
    assert list(rerun(Cache.open(tmp_path / "tokens"), other(), 20)) == []
    assert set(Cache.open(tmp_path / "tokens").read_members(0, 0, ["jpg", "json", "label.png"])) == {"json"}


# ------------------------------------------------------------------------------ wherever it is made


def test_several_devices_make_the_same_bytes(whole: Whole, tokens: Path, tmp_path: Path) -> None:
    cfg = over(whole[0], tmp_path, device="cuda:0,1")
    build(cfg, other(), load=lambda _: other(), quiet=True)
    assert tree(tmp_path) == tree(tokens)


def test_another_process_gets_the_views_and_refuses_a_changed_cache(
    whole: Whole, images: Path, tmp_path: Path
) -> None:
    """What a worker of Ray is sent: the pickled plan."""
    out = Path(shutil.copytree(whole[0], tmp_path / "pixels"))
    plan = plan_of(follow(over(out, tmp_path / "tokens")), None, FORMAT)
    data, sid = pickle.dumps(plan), plan.shard(1)[0].sid
    assert plan.view_source is not None
    assert pickle.loads(data).view_source.view(sid, 1) == plan.view_source.view(sid, 1)
    shutil.rmtree(out)
    build(config(images, out, seed=1), TinyTeacher(), quiet=True)
    with pytest.raises(CacheError, match="changed during the build"):
        pickle.loads(data)


def test_a_cache_behind_a_url(whole: Whole, tokens: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Cache.open.__func__, "__kwdefaults__", {"home": tmp_path / "mirror", "limit": 10**6})  # type: ignore[attr-defined]
    url = f"memory://{tmp_path.name}/pixels"
    push(whole[0], url, lambda _: None)
    build(over(url, tmp_path / "tokens"), other(), quiet=True)
    remote, local = tree(tmp_path / "tokens"), tree(tokens)
    assert read_spec(tmp_path / "tokens").pixels["path"] == url
    names = {name for name in remote if remote[name] != local[name]}
    assert names == {"cache.json", "shards.parquet", "manifest.sha256"}, "the place is no part of the rest"
    push(tmp_path / "tokens", f"memory://{tmp_path.name}/tokens", lambda _: None)
    assert Cache.open(f"memory://{tmp_path.name}/tokens").read(0, 3).sid == Cache.open(tokens).sid(3)


SCRIPT = """
import os, signal, sys
from pathlib import Path
from gkd_scale.cache.build import build
from tests.cache.test_stored import other, over

teacher = other()
call = type(teacher).__call__

class Mortal(type(teacher)):
    def __call__(self, pixels):
        if self.calls == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pixels)

teacher.__class__ = Mortal
build(over(Path(sys.argv[1]), Path(sys.argv[2])), teacher, quiet=True)
"""


def test_a_killed_build_goes_on_to_the_same_bytes(whole: Whole, tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(whole[0]), str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=ROOT, env=env).returncode == -signal.SIGKILL
    assert not (tmp_path / "manifest.parquet").exists() and (tmp_path / "plan.parquet").exists()
    report = build(over(whole[0], tmp_path), other(), quiet=True)
    assert 0 < report.shards_built < 6
    assert tree(tmp_path) == tree(tokens)


# -------------------------------------------------------------------------------- damage and change


def test_damaged_pixels_name_their_shard_and_the_build_goes_on(
    whole: Whole, tokens: Path, copy: Callable[[], Path], tmp_path: Path
) -> None:
    pixels = copy()
    name = damage_jpeg(pixels)
    with pytest.raises(DamageError) as met:
        build(over(pixels, tmp_path / "tokens"), other(), quiet=True)
    assert met.value.message == f"{pixels}/v00/shard-000001.tar: {name}: CRC32 mismatch"
    assert not list(tmp_path.rglob("tokens/**/*.part"))
    shutil.copy(whole[0] / "v00/shard-000001.tar", pixels / "v00/shard-000001.tar")
    build(over(pixels, tmp_path / "tokens"), other(), quiet=True)
    assert tree(tmp_path / "tokens/v00") == tree(tokens / "v00")


def test_a_begun_cache_is_not_finished_over_other_pixels(
    tokens: Path, images: Path, copy: Callable[[], Path], tmp_path: Path
) -> None:
    build(config(images, tmp_path / "int8", codec="int8"), TinyTeacher(), quiet=True)
    out = Path(shutil.copytree(tokens, tmp_path / "tokens"))
    (out / "manifest.parquet").unlink()
    before = tree(out)
    with pytest.raises(CacheError, match=r"pixels\.manifest: the cache has \"[0-9a-f]{64}\", asked for"):
        build(over(tmp_path / "int8", out), other(), quiet=True)
    with pytest.raises(CacheError, match="holds a cache of another spec"):
        build(config(images, out), other(), quiet=True)
    assert tree(out) == before
    build(over(copy(), out), other(), quiet=True)  # the same cache in another place
    assert tree(out) == tree(tokens)


def test_a_cache_is_not_built_into_itself(copy: Callable[[], Path]) -> None:
    pixels = copy()
    before = tree(pixels)
    with pytest.raises(CacheError, match="holds a cache of another spec"):
        build(over(pixels, pixels), TinyTeacher(), quiet=True)
    assert tree(pixels) == before


# ------------------------------------------------------------------------------------- its options


def test_options_that_the_cache_decides_may_be_left_out_or_agree(whole: Whole, tmp_path: Path) -> None:
    cfg = follow(over(whole[0], tmp_path))
    assert (cfg.size, cfg.views, cfg.samples_per_shard, cfg.view) == ((32, 48), 2, 4, ViewConfig())
    assert follow(over(whole[0], tmp_path, image_size="32x48", views=2, seed=0)) == cfg


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-size", "48"], "image_size 32x48, not 48x48"),
        (["--views", "1"], "views 2, not 1"),
        (["--seed", "3"], "seed 0, not 3"),
        (["--samples-per-shard", "512"], "samples_per_shard 4, not 512"),
        (["--view.flip", "0", "--view.crop", "center"], "view.crop random, not center; view.flip 0.5, not 0"),
    ],
)
def test_another_value_is_refused(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    """A default too, if it was given: --views 1, --samples-per-shard 512."""
    assert refuses(["--images", f"cache:{whole[0]}", *flags], tmp_path, capsys, f"{whole[0]} has {message}")


def refuses(flags: list[str], out: Path, capsys: pytest.CaptureFixture[str], message: str) -> bool:
    """Whether cache-teacher ends with status 2, one line of error, one of advice, and nothing written."""
    status = main(["cache-teacher", "--out", str(out / "out"), *flags])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and message in lines[0] and lines[1].strip().startswith("→"), lines
    return status == 2 and not (out / "out").exists()


def test_what_is_no_source_of_pixels_is_refused(
    whole: Whole, tokens: Path, copy: Callable[[], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = copy()
    (draft / "manifest.parquet").unlink()
    for images, message in (
        ("cache:", "names no cache"),
        (f"cache:{tmp_path}", f"{tmp_path} is not a teacher cache"),
        (f"cache:{tmp_path}/nowhere", "nowhere does not exist"),
        (f"cache:{draft}", f"{draft} is unfinished"),
        (f"cache:{tokens}", f"{tokens} holds no pixels: they are those of the cache with manifest sha256"),
        (str(whole[0]), "'image_size' is required (give --image-size)"),
    ):
        assert refuses(["--images", images], tmp_path, capsys, message)


def test_other_commands_do_not_take_stored_pixels_for_a_folder(whole: Whole) -> None:
    from gkd_scale.cache.plan import make_plan

    with pytest.raises(DataError, match="cache-teacher, plan and repair"):
        make_plan(f"cache:{whole[0]}", 4)


def test_given_tells_what_was_left_to_its_default(tmp_path: Path) -> None:
    from gkd_scale.config import explicit_keys

    values = {"images": "a", "out": str(tmp_path), "image_size": 32, "view": {"flip": 0.5}}
    assert explicit_keys(build_config(CacheTeacherConfig, values)) == {*values, "view.flip"}
    assert explicit_keys(config(tmp_path, tmp_path)) == set()


# ------------------------------------------------------------------------------------ who opens it


def test_verify_and_stats_need_no_pixels(tokens: Path, images: Path, tmp_path: Path) -> None:
    assert verify(tokens, print, quiet=True) == 0
    build(config(images, tmp_path), other(), quiet=True)
    stats, direct = (measure(Cache.open(cache), quiet=True) for cache in (tokens, tmp_path))
    np.testing.assert_array_equal(stats.patch.covariance, direct.patch.covariance)


def test_whoever_needs_pixels_says_whose_they_are(whole: Whole, tokens: Path, tmp_path: Path) -> None:
    from gkd_scale.segment.datasets.cache import open_dataset

    cache = Cache.open(tokens)
    message = rf"holds no pixels: they are those of the cache with manifest sha256 \w{{64}} \({whole[0]}\)"
    with pytest.raises(CacheError, match=message):
        CachedSource(cache, global_batch=2, micro_batch=2)
    with pytest.raises(CacheError, match=message):
        cache[0]
    with pytest.raises(CacheError, match=message):
        open_dataset(tokens)
    with pytest.raises(CacheError, match=message):
        certify(CertifyConfig(tokens, codec="int8"))
    with pytest.raises(CacheError, match="is made of the pixels of a cache"):
        mend(tokens, str(tmp_path))


def test_the_pixels_are_found_where_they_were(whole: Whole, tokens: Path, tmp_path: Path) -> None:
    cache = Cache.open(tokens)
    assert list(rerun(cache, other(), 20)) == []
    contact_sheet(cache, tmp_path / "sheet.png", samples=3)
    contact_sheet(Cache.open(whole[0]), tmp_path / "pixels.png", samples=3)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    assert f"  pixels   none: those of {whole[0]}, manifest sha256 {cache.spec.pixels_of}" in describe(cache)


def test_pixels_that_moved_or_changed_are_not_taken(
    images: Path, copy: Callable[[], Path], tmp_path: Path
) -> None:
    pixels = copy()
    build(over(pixels, tmp_path / "tokens"), other(), quiet=True)
    cache = Cache.open(tmp_path / "tokens")
    name = damage_jpeg(pixels)
    assert any(f"{pixels}/v00/shard-000001.tar: {name}" in line for line in rerun(cache, other(), 20))
    shutil.rmtree(pixels)
    with pytest.raises(CacheError, match="holds no pixels"):
        list(rerun(cache, other(), 2))
    build(config(images, pixels, seed=1), TinyTeacher(), quiet=True)
    with pytest.raises(CacheError, match="holds no pixels"):
        contact_sheet(cache, tmp_path / "sheet.png")


def mend(out: Path, images: str) -> BuildReport:
    cfg = RepairConfig(out, images, batch_size=3, workers=2)
    return repair(cfg, read_spec(out), other(), lambda _: None, quiet=True)


def test_repair_takes_the_pixels_again(whole: Whole, tokens: Path, images: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tokens, tmp_path / "tokens"))
    flip(out / "v01/shard-000000.tar", 700)
    with pytest.raises(DamageError) as met:
        Cache.open(out).read(1, 0)
    assert met.value.hint.endswith(f"repair {out} --images cache:{whole[0]}")
    build(config(images, tmp_path / "others", views=1), TinyTeacher(), quiet=True)
    with pytest.raises(CacheError, match=r"pixels\.manifest"):
        mend(out, f"cache:{tmp_path / 'others'}")
    assert mend(out, f"cache:{whole[0]}").shards_built == 1
    assert tree(out) == tree(tokens)


def test_a_cache_of_images_is_not_repaired_with_stored_pixels(whole: Whole, copy: Callable[[], Path]) -> None:
    out = copy()
    cfg = RepairConfig(out, f"cache:{whole[0]}")
    with pytest.raises(CacheError, match="pixels: the cache has null"):
        repair(cfg, read_spec(out), TinyTeacher(), lambda _: None, quiet=True)
    assert tree(out) == tree(whole[0])
