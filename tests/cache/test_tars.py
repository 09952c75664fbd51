"""Tars: every image is found and read as it was stored, and whatever is none is counted."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.cache.location import expand, locations
from gkd_scale.cache.plan import make_plan, sid_of
from gkd_scale.cache.tars import Tars, labels
from gkd_scale.errors import DataError

from .archives import Member, picture, tar_of, write_tar

A, B, C = (picture(seed) for seed in range(3))


def contents(*tars: Path | str) -> tuple[dict[str, bytes | str], list[str]]:
    """What is read from tars by name (why not, where it is not), and the notes."""
    source = Tars([str(tar) for tar in tars])
    images: dict[str, bytes | str] = {}
    for name, size in source.entries():
        images[name] = content(source, name)
        assert len(images[name]) == size or not size
    return images, source.notes


def content(source: Tars, name: str) -> bytes | str:
    try:
        return source.read(name)
    except OSError as error:
        return str(error.strerror)


def refuse(path: Path, *messages: str) -> None:
    with pytest.raises(DataError) as error:
        Tars([str(path)]).entries()
    assert error.value.hint
    for each in (path.name, *messages):
        assert each in str(error.value)


# --------------------------------------------------------------------------------------- names


def test_one_name_alone_is_the_file_name() -> None:
    assert labels(["/x/a.tar", "/y/b.tar", "s3://bucket/c.tar?key=1"]) == {
        "a.tar": "/x/a.tar",
        "b.tar": "/y/b.tar",
        "c.tar": "s3://bucket/c.tar?key=1",
    }


def test_tars_of_one_name_are_told_apart_by_their_folders() -> None:
    assert list(labels(["p0/d.tar", "p1/d.tar", "e.tar"])) == ["p0/d.tar", "p1/d.tar", "e.tar"]
    assert list(labels(["a/x/d.tar", "b/x/d.tar", "b/y/d.tar"])) == ["a/x/d.tar", "b/x/d.tar", "b/y/d.tar"]
    assert list(labels(["d.tar", "./d.tar"])) == ["d.tar"]
    assert list(labels(["s3://one/d.tar", "s3://two/d.tar"])) == ["one/d.tar", "two/d.tar"]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=1, max_size=8))
def test_labels_are_as_many_as_tars_and_the_same_elsewhere(paths: list[list[str]]) -> None:
    tars = ["/".join(path) + ".tar" for path in paths]
    here, there = (labels([f"{root}/{tar}" for tar in tars]) for root in ("/r", "/other/place"))
    assert len(here) == len(set(tars))
    if len({len(path) for path in paths}) == 1:
        assert list(here) == list(there), "the sids of a moved set stay"


def test_sids_of_the_same_name_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        for part in range(2):
            write_tar(tmp_path / place / f"p{part}/data.tar", [("0.jpg", A)])
    sids = [
        {entry.sid for entry in make_plan(str(tmp_path / place / "p{0..1}/data.tar"), 4)}
        for place in ("here", "there")
    ]
    assert sids[0] == sids[1] == {sid_of("p0/data.tar/0.jpg"), sid_of("p1/data.tar/0.jpg")}


# ------------------------------------------------------------------------------------- members


def test_links_are_the_images_they_point_to(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a/0.jpg", A),
        ("a/1.jpg<a/0.jpg", None),
        ("b/2.jpg", "../a/1.jpg"),
        ("b/3.jpg", "2.jpg"),
        ("4.jpg", "later.bin"),
        ("later.bin", B),
        ("5.jpg", "/etc/5.jpg"),
        ("6.jpg<gone.jpg", None),
        ("7.jpg", "7.jpg"),
    ]
    images, notes = contents(write_tar(tmp_path / "x.tar", members))
    assert [images[f"x.tar/{name}"] for name in ("a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg")] == [A] * 4
    assert images["x.tar/4.jpg"] == B and notes == [
        "files in the tars that are no images by name, left out: 1 .bin"
    ]
    for name, target in (("5.jpg", "/etc/5.jpg"), ("6.jpg", "gone.jpg"), ("7.jpg", "7.jpg")):
        assert images[f"x.tar/{name}"] == f"a link to {target}, which is not in the tar"


def test_a_hard_link_is_to_the_file_before_it(tmp_path: Path) -> None:
    members: list[Member] = [("x.dat", A), ("0.jpg<x.dat", None), ("x.dat", B), ("1.jpg<x.dat", None)]
    images, _ = contents(write_tar(tmp_path / "x.tar", members))
    assert images == {"x.tar/0.jpg": A, "x.tar/1.jpg": B}


def test_images_of_one_name_are_all_kept_and_said(tmp_path: Path) -> None:
    images, notes = contents(write_tar(tmp_path / "x.tar", [("0.jpg", A), ("0.jpg", B), ("0.jpg", C)]))
    assert images == {"x.tar/0.jpg": A, "x.tar/0.jpg#2": B, "x.tar/0.jpg#3": C}
    assert notes == [
        "images with the name of another in their tar: 2; all are kept, the first of them as x.tar/0.jpg#2"
    ]


def test_resource_forks_are_told_from_images(tmp_path: Path) -> None:
    members: list[Member] = [("._0.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X"), ("0.jpg", A), ("a/._1.jpg", B)]
    images, notes = contents(write_tar(tmp_path / "x.tar", members))
    assert images == {"x.tar/0.jpg": A, "x.tar/a/._1.jpg": B}
    assert notes == ["resource forks of macOS (._NAME) in the tars, left out: 1"]


def test_whatever_is_no_image_is_counted(tmp_path: Path) -> None:
    members: list[Member] = [
        ("0.jpg", A),
        ("0.cls", b"1"),
        ("1.GIF", b""),
        ("2.gif", b"GIF"),
        ("readme", b""),
    ]
    full, bare = write_tar(tmp_path / "full.tar", members), write_tar(tmp_path / "bare.tar", members[1:2])
    images, notes = contents(full, bare)
    assert list(images) == ["full.tar/0.jpg"] and notes == [
        "files in the tars that are no images by name, left out: 2 .cls, 2 .gif, 1 without an ending",
        "tars without any image, 1 of 2: bare.tar",
    ]
    refuse(bare, "hold no images", "1 .cls")


def test_folders_of_equal_names_and_empty_files(tmp_path: Path) -> None:
    images, _ = contents(write_tar(tmp_path / "x.tar", [("a/0.jpg", A), ("b/0.jpg", B), ("./c/0.jpg", b"")]))
    assert images == {"x.tar/a/0.jpg": A, "x.tar/b/0.jpg": B, "x.tar/./c/0.jpg": b""}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_no_unicode(tmp_path: Path, format: int) -> None:
    names = ["d" * 90 + "/" + "e" * 120 + ".jpg", "ü.jpg", b"caf\xe9.jpg".decode("utf-8", "surrogateescape")]
    images, _ = contents(write_tar(tmp_path / "x.tar", [(name, A) for name in names], format))
    assert images == {f"x.tar/{name}": A for name in names}
    assert len(make_plan(str(tmp_path / "x.tar"), 4)) == 3


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_files_are_read_whole(tmp_path: Path, format: str) -> None:
    data = A + bytes(1 << 20) + B + bytes(1 << 20)
    with (tmp_path / "0.jpg").open("wb") as file:
        for start, part in ((0, A), (len(A) + (1 << 20), B)):
            file.seek(start)
            file.write(part)
        file.truncate(len(data))
    (tmp_path / "1.jpg").write_bytes(C)
    command = ["tar", "-S", f"--format={format}", "-cf", "x.tar", "0.jpg", "1.jpg"]
    if shutil.which("tar") is None or subprocess.run(command, cwd=tmp_path, check=False).returncode:
        pytest.skip("no GNU tar here")
    assert contents(tmp_path / "x.tar")[0] == {"x.tar/0.jpg": data, "x.tar/1.jpg": C}


# ---------------------------------------------------------------------------------------- ends


def test_a_tar_without_its_end_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = tar_of([("0.jpg", A), ("1.jpg", B)])
    end = 1024 + 512 * (-(-len(A) // 512) + -(-len(B) // 512))
    path = tmp_path / "x.tar"
    for length in (end, end - 1, end - 600, 512 + len(A), 1024, 700):
        path.write_bytes(whole[:length])
        refuse(path, "is cut short or damaged", "copy or download it again")
    path.write_bytes(whole[: end + 512])
    assert len(contents(path)[0]) == 2, "one empty block is an end"
    path.write_bytes(b"")
    refuse(path, "is empty (0 bytes)")


def test_damage_in_the_middle_does_not_hide_what_follows(tmp_path: Path) -> None:
    data = bytearray(tar_of([("0.jpg", A), ("1.jpg", B), ("2.jpg", C)]))
    header = 512 + 512 * -(-len(A) // 512)
    data[header + 200] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(data)
    refuse(tmp_path / "x.tar", f"is damaged at byte {header}")


def test_tars_behind_each_other_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("0.jpg", A)]) + tar_of([("1.jpg", B)]) + tar_of([("0.jpg", C)]))
    images, notes = contents(tmp_path / "x.tar")
    assert images == {"x.tar/0.jpg": A, "x.tar/1.jpg": B, "x.tar/0.jpg#2": C}
    assert notes[1] == "several tars one behind the other in one file, all of them read: x.tar"
    (tmp_path / "x.tar").write_bytes(tar_of([("0.jpg", A)]) + b"something else")
    refuse(tmp_path / "x.tar", "something else after its end")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(tar_of([("0.jpg", A)])), "it is gzip, not a tar"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid 1\n", "a pointer of Git LFS"),
        (b"rubbish" * 200, "cannot be read"),
        (A, "a JPEG"),
    ],
)
def test_what_is_called_tar_and_is_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    refuse(tmp_path / "x.tar", message)


def test_a_tar_that_shrinks_afterwards_is_an_unreadable_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("0.jpg", A)])
    source = Tars([str(path)])
    source.entries()
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(OSError, match="the tar ends before the image does"):
        source.read("x.tar/0.jpg")


# ----------------------------------------------------------------------------------- locations


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{2..0}", ["2", "1", "0"]),
        ("{10..8}", ["10", "9", "8"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{8..010}", ["008", "009", "010"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{6..0..4}", ["6", "2"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a,b{0..1}}", ["a", "b0", "b1"]),
        ("{a}", ["{a}"]),
        ("x{0..1", ["x{0..1"]),
        ("{1..1}", ["1"]),
    ],
)
def test_braces_as_in_bash(pattern: str, names: list[str]) -> None:
    assert sorted(expand(pattern)) == sorted(names)
    if "{" not in pattern[1:]:
        assert expand(pattern) == names


def test_too_many_braces() -> None:
    with pytest.raises(DataError, match="more than 1000000 files"):
        expand("{0..9999999999999}.tar")


def test_patterns_and_joins(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar", "sub/c.tar", "odd{0..1}.tar"):
        write_tar(tmp_path / name, [("0.jpg", A)])
    names = {Path(each).name for each in locations(f"{tmp_path}/*.tar")}
    assert names == {"a.tar", "b.tar", "odd{0..1}.tar"}
    assert locations(f"{tmp_path}/b.tar::{tmp_path}/{{a,b}}.tar") == [
        f"{tmp_path}/b.tar",
        f"{tmp_path}/a.tar",
    ]
    assert locations(f"{tmp_path}/odd{{0..1}}.tar") == [f"{tmp_path}/odd{{0..1}}.tar"], "a file of that name"
    assert len(make_plan(f"{tmp_path}/**/*.tar", 4)) == 4
    with pytest.raises(DataError, match="no file matches"):
        make_plan(f"{tmp_path}/none*.tar", 4)
