"""Sources of images, and caches on remote storage; over fsspec's own file systems and a real S3 server."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.location import expand, is_url, url_of
from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.remote import Mirror, Outbox, push
from gkd_scale.cache.source import PathList, open_source
from gkd_scale.errors import CacheError, DataError

from .support import TinyTeacher, config, tree, write_images

Whole = tuple[Path, BuildReport]


# ------------------------------------------------------------------------------------ sources


def names_of(images: str | Path) -> list[str]:
    return sorted(entry.path for entry in make_plan(images, 4))


def test_locations() -> None:
    assert is_url("s3://b/x") and is_url(Path("s3://b/x")) and not is_url("/data/x") and not is_url("c:x")
    assert url_of(Path("s3://b/x/y")) == "s3://b/x/y" == url_of("s3://b/x/y")
    assert url_of("file:///a") == "file:///a" == url_of(Path("file:///a"))
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"] and expand("x") == ["x"]


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_list_takes_what_it_names(images: Path, tmp_path: Path, kind: str) -> None:
    names = ["b/001.PNG", str(images / "b/002.webp"), "b/gone.jpg", "b/001.PNG"]
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    file = tmp_path / f"list.{kind}"
    if kind == "txt":
        file.write_text("\n".join(names) + "\n\n")
    else:
        pq.write_table(pa.table({"path": names, "label": [1, 2, 3, 4]}), file)
    assert sorted(names_of(file)) == sorted(set(names))
    report = build(config(file, tmp_path / "cache", views=1), TinyTeacher(), quiet=True)
    assert report.samples_built == 2 and report.errors == {"b/gone.jpg": "no such file"}


def test_a_folder_and_its_list_make_the_same_samples(images: Path, whole: Whole, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    file.write_text("\n".join(names_of(images)))
    build(config(file, tmp_path / "cache"), TinyTeacher(), quiet=True)
    assert tree(tmp_path / "cache") == tree(whole[0])


def test_tars_in_the_manner_of_webdataset(images: Path, tmp_path: Path) -> None:
    good = [path for path in sorted(images.rglob("*")) if path.is_file()]
    for number, part in enumerate((good[:5], good[5:])):
        with tarfile.open(tmp_path / f"part-{number:02d}.tar", "w") as tar:
            for path in part:
                tar.add(path, f"{path.stem}{path.suffix.lower()}")
            (tmp_path / "0.cls").write_text("7")
            tar.add(tmp_path / "0.cls", "0.cls")
    pattern = str(tmp_path / "part-{00..01}.tar")
    assert len(names_of(pattern)) == 12 and "part-00.tar/000.jpg" in names_of(pattern)
    report = build(config(pattern, tmp_path / "cache", views=1), TinyTeacher(), quiet=True)
    assert report.samples_built == 10 and len(report.errors) == 2


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "rubbish.parquet").write_text("PAR")
    (tmp_path / "rubbish.tar").write_bytes(b"rubbish" * 100)
    tarfile.open(tmp_path / "empty.tar", "w").close()
    for name, message in [
        ("empty.txt", "names no images"),
        ("gone.txt", "does not exist"),
        ("rubbish.parquet", "column 'path'"),
        ("rubbish.tar", "cannot be read"),
        ("gone-{0..1}.tar", "cannot be read"),
        ("empty.tar", "hold no images"),
        ("memory://nothing-here", "holds no images"),
        ("nosuchscheme://x", "cannot be opened"),
    ]:
        location = name if "://" in name else str(tmp_path / name)
        with pytest.raises(DataError, match=message):
            make_plan(location, 4)
    assert open_source(tmp_path) is None


# --------------------------------------------------------------------------- remote storage


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a real S3 API server on loopback."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import fsspec

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    fsspec.filesystem("s3").mkdir("gkd")
    yield "s3://gkd"
    server.stop()


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.e2e)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{name}"
    return f"file://{tmp_path}/{name}" if request.param == "file" else f"memory://{name}"


def upload(folder: Path, url: str) -> None:
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        there = f"{root}/{path.relative_to(folder).as_posix()}"
        fs.makedirs(there.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(path), there)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_remote_images_make_the_same_cache(storage: str, images: Path, whole: Whole, tmp_path: Path) -> None:
    upload(images, storage)
    build(config(storage, tmp_path / "cache"), TinyTeacher(), quiet=True)
    assert tree(tmp_path / "cache") == tree(whole[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_pushed_cache_trains_like_the_local_one(storage: str, whole: Whole, tmp_path: Path) -> None:
    order: list[str] = []
    assert push(whole[0], storage, order.append) == len(order) >= 16
    for index in [name for name in order if name.endswith(".parquet") and "/" in name]:
        assert order.index(index.replace(".parquet", ".tar")) < order.index(index)
    assert order[-1] == "manifest.parquet"
    again: list[str] = []
    push(whole[0], storage, again.append)
    assert not any(name.endswith(".tar") for name in again)
    remote = Cache.open(storage, home=tmp_path / "home")
    both = [CachedSource(cache, global_batch=10, micro_batch=10) for cache in (remote, Cache.open(whole[0]))]
    for one, other in zip(*(source.batches(0, 4) for source in both), strict=True):
        assert one.sids == other.sids and one.pixels.equal(other.pixels)
        assert one.teacher.patches.equal(other.teacher.patches)


def test_a_mirror_keeps_to_its_limit_and_fetches_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkd_scale.cache.reader.OPEN_SHARDS", 1)
    write_images(tmp_path / "images", 12)
    build(config(tmp_path / "images", tmp_path / "cache", views=1), TinyTeacher(), quiet=True)
    url = f"memory://{uuid.uuid4().hex}"
    push(tmp_path / "cache", url, lambda _: None)
    size = max(tar.stat().st_size for tar in (tmp_path / "cache").rglob("*.tar"))
    remote = Cache.open(url, home=tmp_path / "home", limit=2 * size)
    for _ in range(2):
        for index in range(12):
            assert remote.read(0, index).jpeg == Cache.open(tmp_path / "cache").read(0, index).jpeg
            total = sum(tar.stat().st_size for tar in (tmp_path / "home").rglob("*.tar"))
            assert total <= 2 * size
    mirror: Any = remote._mirror
    assert mirror.fetched >= 3 + 3 + 6 - 1, "root files, indexes, and tars that had gone"
    assert isinstance(Mirror(url, tmp_path / "home", 2 * size), Mirror)


@pytest.fixture
def ranks(tmp_path: Path) -> tuple[list[Mirror], int]:
    """Two mirrors of one cache in one folder, with room for two of its three shards; bytes of the room."""
    write_images(tmp_path / "images", 12)
    build(config(tmp_path / "images", tmp_path / "cache", views=1), TinyTeacher(), quiet=True)
    url = f"memory://{uuid.uuid4().hex}"
    push(tmp_path / "cache", url, lambda _: None)
    room = 2 * max(tar.stat().st_size for tar in (tmp_path / "cache").rglob("*.tar"))
    return [Mirror(url, tmp_path / "home", room) for _ in range(2)], room


def test_ranks_share_the_limit_and_the_last_use(ranks: tuple[list[Mirror], int]) -> None:
    (one, other), room = ranks
    tars = [f"v00/shard-{number:06d}.tar" for number in range(3)]
    for rank, number in ((one, 0), (one, 1), (other, 0), (other, 2)):
        rank.fetch(tars[number])
        assert sum(tar.stat().st_size for tar in one.folder.rglob("*.tar")) <= room
    assert [(one.folder / tar).exists() for tar in tars] == [True, False, True], "1 was used last by nobody"
    assert not list(one.folder.glob("v*/*.lock"))


def test_ranks_that_need_one_tar_download_it_once(
    ranks: tuple[list[Mirror], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors, _ = ranks
    file_system: Any = mirrors[0]._fs
    whole, before = file_system.get_file, sum(each.fetched for each in mirrors)

    def slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        whole(*arguments)

    monkeypatch.setattr(file_system, "get_file", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda mirror: mirror.fetch("v00/shard-000001.tar"), mirrors))
    assert sum(each.fetched for each in mirrors) == before + 1


def test_an_unfinished_cache_is_not_pushed(copy: Any) -> None:
    out = copy()
    (out / "manifest.parquet").unlink()
    with pytest.raises(CacheError, match="is unfinished"):
        push(out, "memory://x", print)


def test_a_remote_cache_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        Cache.open("memory://nowhere", home=tmp_path)


# ------------------------------------------------------------------- building straight to a URL


def remote_tree(url: str) -> dict[str, str]:
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    return {
        path[len(root) + 1 :]: hashlib.sha256(fs.cat_file(path)).hexdigest() for path in sorted(fs.find(root))
    }


def build_to(url: str, images: Path, home: Path, teacher: TinyTeacher) -> BuildReport:
    outbox = Outbox(url, home)
    return build(config(images, outbox.folder), teacher, outbox=outbox, quiet=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_build_to_a_url_goes_on_from_another_machine(
    storage: str, images: Path, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the teacher broke"):
        build_to(storage, images, tmp_path / "one", TinyTeacher(fail_at=5))
    there = remote_tree(storage)
    shards = [name for name in there if name.endswith(".tar")]
    assert len(shards) >= 1 and "manifest.parquet" not in there
    assert all(name.replace(".tar", ".parquet") in there for name in shards)
    other = TinyTeacher()
    report = build_to(storage, images, tmp_path / "two", other)
    assert report.shards_built == 6 - len(shards) and other.calls < 8
    expected = {name: digest for name, digest in tree(whole[0]).items() if name != ".lock"}
    assert remote_tree(storage) == expected
    assert not list((tmp_path / "two").rglob("*.tar")), "what was sent is not kept"
    assert build_to(storage, images, tmp_path / "three", TinyTeacher(fail_at=0)).shards_built == 0
    with pytest.raises(CacheError, match="seed: the cache has 0, asked for 1"):
        outbox = Outbox(storage, tmp_path / "four")
        build(config(images, outbox.folder, seed=1), TinyTeacher(), outbox=outbox, quiet=True)


def test_a_shard_that_was_not_sent_is_sent_by_the_next_run(
    images: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, send = f"memory://{uuid.uuid4().hex}", Outbox.send

    def fail(outbox: Outbox, view: int, shard: int) -> None:
        if (view, shard) == (1, 0):
            raise OSError("the network is gone")
        send(outbox, view, shard)

    monkeypatch.setattr(Outbox, "send", fail)
    with pytest.raises(OSError, match="the network is gone"):
        build_to(url, images, tmp_path, TinyTeacher())
    monkeypatch.undo()
    build_to(url, images, tmp_path, TinyTeacher())
    assert remote_tree(url) == {name: digest for name, digest in tree(whole[0]).items() if name != ".lock"}


def test_a_list_with_a_line_that_is_no_path(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    name = next(path for path in tmp_path.rglob("*") if path.is_file()).relative_to(tmp_path)
    file = tmp_path / "list.txt"
    file.write_text(f"{name}\n{'x' * 5000}\n{'é' * 5000}\n")
    source = PathList(file)
    assert [size > 0 for _, size in source.entries()] == [True, False, False]
    with pytest.raises(OSError, match="no such file"):
        source.read("x" * 5000)
    file.write_text("x" * 5000)
    with pytest.raises(DataError, match="none of which exists"):
        source.entries()
