"""Kind G: tars. Nothing of one is left out without being counted and named."""

from __future__ import annotations

import functools
import gzip
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cache.archives import Member, picture, tar_of, write_tar
from tests.cases.case import Bench, Ran, case
from tests.conftest import TINY, tiny_args

KIND = "G. Tars"
IMAGES = [picture(seed) for seed in range(9)]


@functools.cache
def weights() -> Path:
    """A tiny teacher, fixed."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    path = Path(tempfile.mkdtemp()) / "tiny.safetensors"
    save_file(net.state_dict(), path)
    return path


def cache(bench: Bench, images: object, out: str = "cache") -> Ran:
    """``gkd-scale cache-teacher --images IMAGES``, with views that depend on pixels alone."""
    return bench.cli(
        *(
            "cache-teacher",
            "--images",
            images,
            "--teacher",
            "vit_tiny_patch16_224",
            "--out",
            bench.folder / out,
        ),
        *(
            "--teacher-weights",
            weights(),
            "--teacher-args",
            *tiny_args(),
            "--image-size",
            "32x48",
            "--views",
            1,
        ),
        *("--view.crop", "center", "--view.flip", 0, "--view.color", 0),
    )


def features(folder: Path) -> list[bytes]:
    """The CLS tokens of a cache, sorted."""
    from gkd_scale.cache.reader import Cache

    tokens = Cache.open(folder)
    return sorted(np.asarray(tokens.read(0, index).cls).tobytes() for index in range(tokens.num_samples))


@functools.cache
def expected(count: int) -> list[bytes]:
    """The CLS tokens of the first ``count`` of IMAGES from a plain folder."""
    folder = Path(tempfile.mkdtemp())
    (folder / "images").mkdir()
    for index, image in enumerate(IMAGES[:count]):
        (folder / f"images/{index}.jpg").write_bytes(image)
    assert cache(Bench(folder), folder / "images").code == 0
    return features(folder / "cache")


def holds(bench: Bench, ran: Ran, count: int) -> str:
    """What a cache says of its images, which must be the first ``count`` of IMAGES and no others."""
    assert ran.code == 0, ran.text
    assert features(bench.folder / "cache") == expected(count)
    return summary(ran)


def summary(ran: Ran) -> str:
    """What a cache command says of its images, without times and bytes."""
    content = re.search(r"(\d+ images) x 1 views", ran.text)
    assert content is not None, ran.text
    gap = re.search(r"\d+ of \d+ images could not be read and are left out: .*? all are listed", ran.text)
    notes = ran.text.partition(" note: ")[2].replace(" note: ", "; ")
    parts = [content[1], gap[0].removesuffix(" all are listed") if gap else "", notes]
    return "ok: " + "; ".join(part for part in parts if part)


def nothing_written(bench: Bench, ran: Ran) -> Ran:
    assert ran.code == 2, ran.text
    assert not (bench.folder / "cache").exists()
    return ran


def members(images: Sequence[bytes], first: int = 0) -> list[Member]:
    return [(f"{first + index:04}.jpg", image) for index, image in enumerate(images)]


@case(KIND, "`part{0..2}/data.tar`: three tars of one name")
def one_name(bench: Bench) -> object:
    for part in range(3):
        write_tar(bench.folder / f"part{part}/data.tar", members(IMAGES[3 * part : 3 * part + 3]))
    return holds(bench, cache(bench, bench.folder / "part{0..2}/data.tar"), 9)


@case(KIND, "the same tars by descending braces `part{2..0}/data.tar` make the same cache")
def reverse(bench: Bench) -> object:
    for part in range(3):
        write_tar(bench.folder / f"part{part}/data.tar", members(IMAGES[3 * part : 3 * part + 3]))
    cache(bench, bench.folder / "part{0..2}/data.tar", "up")
    outcome = holds(bench, cache(bench, bench.folder / "part{2..0}/data.tar"), 9)
    plans = [(bench.folder / out / "plan.parquet").read_bytes() for out in ("up", "cache")]
    assert plans[0] == plans[1]
    return outcome


@case(KIND, "hard links, as tar writes them of files that are one on disk")
def hard_links(bench: Bench) -> object:
    tar = [*members(IMAGES[:1]), ("0001.jpg<0000.jpg", None)]
    write_tar(bench.folder / "x.tar", tar)
    ran = cache(bench, bench.folder / "x.tar")
    assert features(bench.folder / "cache") == 2 * expected(1)
    return summary(ran)


@case(KIND, "symbolic links, one of them to a file outside of the tar")
def symbolic_links(bench: Bench) -> object:
    tar: list[Member] = [
        ("data/0.jpg", IMAGES[0]),
        ("link/1.jpg", "../data/0.jpg"),
        ("link/2.jpg", "/data/2.jpg"),
    ]
    write_tar(bench.folder / "x.tar", tar)
    ran = cache(bench, bench.folder / "x.tar")
    assert features(bench.folder / "cache") == 2 * expected(1)
    return summary(ran)


@case(KIND, "a tar that ends in the middle of an image (a broken download)")
def cut_in_an_image(bench: Bench) -> object:
    data = tar_of(members(IMAGES[:3]))
    (bench.folder / "x.tar").write_bytes(data[: 1024 + len(IMAGES[0])])
    return nothing_written(bench, cache(bench, bench.folder / "x.tar"))


@case(KIND, "a tar whose writer was killed between two images: no end")
def no_end(bench: Bench) -> object:
    data = tar_of(members(IMAGES[:3])).rstrip(b"\0")
    (bench.folder / "x.tar").write_bytes(data + bytes(-len(data) % 512))
    return nothing_written(bench, cache(bench, bench.folder / "x.tar"))


@case(KIND, "a flipped bit in a header in the middle")
def flip(bench: Bench) -> object:
    data = bytearray(tar_of(members([b"", *IMAGES[:2]])))
    data[512 + 150] ^= 1
    (bench.folder / "x.tar").write_bytes(data)
    return nothing_written(bench, cache(bench, bench.folder / "x.tar"))


@case(KIND, "the same name twice in one tar, two images")
def twice(bench: Bench) -> object:
    write_tar(bench.folder / "x.tar", [("image.jpg", IMAGES[0]), ("image.jpg", IMAGES[1])])
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "`._0000.jpg`: macOS's resource forks beside the images")
def forks(bench: Bench) -> object:
    tar: list[Member] = [("._0000.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X        "), *members(IMAGES[:2])]
    write_tar(bench.folder / "x.tar", tar)
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "two tars one behind the other in one file (`cat a.tar b.tar`)")
def join(bench: Bench) -> object:
    (bench.folder / "x.tar").write_bytes(tar_of(members(IMAGES[:2])) + tar_of(members(IMAGES[2:3], 2)))
    return holds(bench, cache(bench, bench.folder / "x.tar"), 3)


@case(KIND, "samples with `.cls` and `.gif` beside the `.jpg`, and a tar without any image")
def others(bench: Bench) -> object:
    write_tar(bench.folder / "a.tar", [*members(IMAGES[:2]), ("0000.cls", b"7"), ("0002.gif", b"GIF89a")])
    write_tar(bench.folder / "b.tar", [("0003.cls", b"7")])
    return holds(bench, cache(bench, bench.folder / "{a,b}.tar"), 2)


@case(KIND, "folders in a tar with files of equal names, an empty file, names of 200 characters")
def nesting(bench: Bench) -> object:
    names = ["a/0.jpg", "b/0.jpg", f"{'c' * 99}/{'d' * 96}.jpg"]
    tar = [*zip(names, IMAGES, strict=False), ("b/1.jpg", b"")]
    write_tar(bench.folder / "x.tar", tar, tarfile.PAX_FORMAT)
    return holds(bench, cache(bench, bench.folder / "x.tar"), 3)


@case(KIND, "a gzip that is named .tar")
def gzip_named_tar(bench: Bench) -> object:
    (bench.folder / "x.tar").write_bytes(gzip.compress(tar_of(members(IMAGES[:2]))))
    return nothing_written(bench, cache(bench, bench.folder / "x.tar"))


@case(KIND, "a tar of tars, as ImageNet's")
def tar_of_tars(bench: Bench) -> object:
    write_tar(bench.folder / "train.tar", [("n01440764.tar", tar_of(members(IMAGES[:2])))])
    return nothing_written(bench, cache(bench, bench.folder / "train.tar"))


@case(KIND, "a folder of images in which tars lie too")
def folder_with_tars(bench: Bench) -> object:
    (bench.folder / "photos").mkdir()
    for index in range(2):
        (bench.folder / f"photos/{index}.jpg").write_bytes(IMAGES[index])
    write_tar(bench.folder / "photos/more.tar", members(IMAGES[2:4]))
    return holds(bench, cache(bench, bench.folder / "photos"), 2)


@case(KIND, "a tar that shares a folder's name with another in braces of braces: `{a,b}/{x,y}.tar`")
def nested_braces(bench: Bench) -> object:
    for index, name in enumerate(("a/x", "a/y", "b/x", "b/y")):
        write_tar(bench.folder / f"{name}.tar", members(IMAGES[index : index + 1]))
    return holds(bench, cache(bench, bench.folder / "{a,b}/{x,y}.tar"), 4)


def mask(seed: int = 0) -> bytes:
    """A label of three classes as PNG."""
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 3, (5, 7), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@case(KIND, "`0000.seg.png` beside `0000.jpg`, as webdataset keeps labels: no image")
def seg_png(bench: Bench) -> object:
    labels: list[Member] = [(f"{index:04}.seg.png", mask(index)) for index in range(2)]
    write_tar(bench.folder / "x.tar", [*members(IMAGES[:2]), *labels])
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "`0000.png` beside `0000.jpg`: labels again")
def same_key(bench: Bench) -> object:
    labels: list[Member] = [(f"{index:04}.png", mask(index)) for index in range(2)]
    write_tar(bench.folder / "x.tar", [*members(IMAGES[:2]), *labels])
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "the tars of a cache with labels")
def own_shards(bench: Bench) -> object:
    from tests.cases.tiny import scenes

    assert cache(bench, f"folder:{scenes() / 'fit'}", "labelled").code == 0
    ran = cache(bench, bench.folder / "labelled/v00/*.tar")
    assert len(features(bench.folder / "cache")) == 4
    return summary(ran).partition(", the first is")[0]


@case(KIND, "`0000.input.jpg` and `0000.target.jpg`, both photographs")
def two_of_a_key(bench: Bench) -> object:
    tar = [("0000.input.jpg", IMAGES[0]), ("0000.target.jpg", IMAGES[1])]
    write_tar(bench.folder / "x.tar", tar)
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "keys with dots, folders with dots, `.JPG` and `.Jpeg`")
def dots(bench: Bench) -> object:
    tar = [("v1.2/a.b.c.JPG", IMAGES[0]), ("v1.2/a.b.d.Jpeg", IMAGES[1]), ("v1.2/a.b.c.json", b"{}")]
    write_tar(bench.folder / "x.tar", tar)
    return holds(bench, cache(bench, bench.folder / "x.tar"), 2)


@case(KIND, "members called `/abs/0.jpg` and `../1.jpg`: nothing is written there")
def outside(bench: Bench) -> object:
    write_tar(bench.folder / "x.tar", [("/abs/0.jpg", IMAGES[0]), ("../1.jpg", IMAGES[1])])
    outcome = holds(bench, cache(bench, bench.folder / "x.tar"), 2)
    assert {path.name for path in bench.folder.iterdir()} == {"x.tar", "cache"}
    return outcome


@case(KIND, "one tar named twice: `x.tar::./x.tar`")
def named_twice(bench: Bench) -> object:
    write_tar(bench.folder / "x.tar", members(IMAGES[:2]))
    return holds(bench, cache(bench, f"{bench.folder}/x.tar::{bench.folder}/./x.tar"), 2)


@case(KIND, "a zip, a 7z, a compressed tar of lz4, each named .tar")
def other_archives(bench: Bench) -> object:
    outcomes = []
    for magic in (b"PK\3\4", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18"):
        (bench.folder / "x.tar").write_bytes(magic + bytes(600))
        outcomes.append(str(nothing_written(bench, cache(bench, bench.folder / "x.tar"))))
    return "; ".join(outcome.partition(" → ")[0] for outcome in outcomes)


@case(KIND, "predict: names in a tar that are not UTF-8")
def predict_latin(bench: Bench) -> object:
    from tests.cases.labelled import finished_run

    write_tar(bench.folder / "x.tar", [(os.fsdecode(b"caf\xe9.jpg"), IMAGES[0]), ("b.jpg", IMAGES[1])])
    ran = bench.cli(
        "predict", finished_run(bench), "--images", bench.folder / "x.tar", "--out", bench.folder / "out"
    )
    assert ran.code == 0 and "2 of 2 images predicted" in ran.text, ran.text
    return ran
