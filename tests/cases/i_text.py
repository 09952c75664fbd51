"""Kind I: small text files, and names that look alike."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gkd_scale.segment.datasets.registry import open_dataset
from tests.cases.case import Bench, Ran, case
from tests.cases.labelled import PNG, cache_images, evaluate, features, finished_run, folder, same_features
from tests.conftest import write_images
from tests.segment.support import CLASSES

KIND = "I. Small text files"

WORDS = ("straße", "trottoir ombragé", "été", "ciel")


def _with_classes(bench: Bench, data: bytes, usual: Sequence[str] = CLASSES) -> Ran:
    """Evaluate a folder whose classes.txt holds ``data`` with a run of the classes ``usual``."""
    finished_run(bench, usual)
    root = folder(bench.folder / "day", PNG)
    (root / "classes.txt").write_bytes(data)
    return evaluate(bench, root)[0]


def _same_classes(bench: Bench, data: bytes, usual: Sequence[str] = CLASSES) -> Ran:
    ran = _with_classes(bench, data, usual)
    assert ran.code == 0, ran.text
    assert list(open_dataset(f"folder:{bench.folder / 'day'}").classes) == list(usual)
    return ran


@case(KIND, "classes.txt with a byte order mark, CRLF and empty lines (Notepad)")
def classes_bom(bench: Bench) -> object:
    return _same_classes(bench, codecs.BOM_UTF8 + "\r\n\r\n".join(CLASSES).encode())


@case(KIND, "classes.txt with the line ends of old Macs")
def classes_cr(bench: Bench) -> object:
    return _same_classes(bench, "\r".join(CLASSES).encode() + b"\r")


@case(KIND, "classes.txt joined from two files with byte order marks")
def classes_two_boms(bench: Bench) -> object:
    halves = ("\n".join(CLASSES[:2]) + "\n", "\n".join(CLASSES[2:]))
    return _same_classes(bench, b"".join(codecs.BOM_UTF8 + half.encode() for half in halves))


@case(KIND, "classes.txt with no-break and zero-width spaces around names")
def classes_spaces(bench: Bench) -> object:
    return _same_classes(bench, "\n".join(f"\u200b{name}\u00a0" for name in CLASSES).encode())


@case(KIND, "classes.txt written on a Mac (NFD), the run's classes written elsewhere (NFC)")
def classes_nfd(bench: Bench) -> object:
    return _same_classes(bench, unicodedata.normalize("NFD", "\n".join(WORDS)).encode(), WORDS)


@case(KIND, 'classes.txt in UTF-16 (Notepad\'s "Unicode")')
def classes_utf16(bench: Bench) -> object:
    return _with_classes(bench, "\r\n".join(CLASSES).encode("utf-16"))


@case(KIND, "classes.txt in UTF-16 without a mark")
def classes_utf16_bare(bench: Bench) -> object:
    return _with_classes(bench, "\r\n".join(CLASSES).encode("utf-16-le"))


@case(KIND, "classes.txt in Latin-1")
def classes_latin1(bench: Bench) -> object:
    return _with_classes(bench, "\n".join(WORDS).encode("latin-1"), WORDS)


@case(KIND, "a class name with a Cyrillic letter that looks like a Latin one")
def classes_twins(bench: Bench) -> object:
    return _with_classes(bench, "\n".join(CLASSES).replace("red", "r\u0435d").encode())


@case(KIND, "a class name with a soft hyphen inside")
def classes_hidden(bench: Bench) -> object:
    return _with_classes(bench, "\n".join(CLASSES).replace("green", "gr\u00adeen").encode())


@case(KIND, "classes.txt that begins with a comment")
def classes_comment(bench: Bench) -> object:
    return _with_classes(bench, b"# my classes\n" + "\n".join(CLASSES).encode())


@case(KIND, "classes.txt with all names in one line")
def classes_one_line(bench: Bench) -> object:
    return _with_classes(bench, ", ".join(CLASSES).encode())


@case(KIND, "ignore.txt and absent.txt with byte order marks")
def ignore_bom(bench: Bench) -> object:
    root = folder(bench.folder / "day", PNG)
    (root / "ignore.txt").write_bytes(codecs.BOM_UTF8 + b"7\r\n8\r\n")
    (root / "absent.txt").write_bytes(codecs.BOM_UTF8 + b"")
    with Image.open(root / "labels/000.png") as image:
        label = image.point(lambda value: 7 if value == 0 else value)
    label.save(root / "labels/000.png")
    assert not (open_dataset(f"folder:{root}").label(0) == 0).any()
    return evaluate(bench, root)[0]


def _list(bench: Bench, data: bytes) -> Ran:
    """Cache a list of three images beside their folder: the features have to be those of the folder."""
    write_images(bench.folder / "images", 3)
    (bench.folder / "list.txt").write_bytes(data)
    return cache_images(bench, bench.folder / "list.txt", bench.folder / "listed")


def _all_three(bench: Bench, data: bytes) -> Ran:
    ran = _list(bench, data)
    assert ran.code == 0 and "left out" not in ran.text, ran.text
    assert cache_images(bench, bench.folder / "images", bench.folder / "cache").code == 0
    assert len(features(bench.folder / "listed")) == 3
    assert same_features(bench.folder / "listed", bench.folder / "cache")
    return ran


PATHS = [f"images/{index:03}.png" for index in range(3)]


@case(KIND, "a list of images with a byte order mark and CRLF: no image is lost")
def list_bom(bench: Bench) -> object:
    return _all_three(bench, codecs.BOM_UTF8 + "\r\n".join(PATHS).encode())


@case(KIND, "a list of images in UTF-16 (PowerShell's >)")
def list_utf16(bench: Bench) -> object:
    return _list(bench, "\r\n".join(PATHS).encode("utf-16"))


@case(KIND, "a list of images with backslashes")
def list_windows(bench: Bench) -> object:
    return _list(bench, "\n".join(path.replace("/", "\\") for path in PATHS).encode())


@case(KIND, "a list of images with class numbers behind the paths (ImageNet's)")
def list_numbers(bench: Bench) -> object:
    return _list(bench, "\n".join(f"{path} 7" for path in PATHS).encode())


def _near(bench: Bench, lines: Sequence[str]) -> Ran:
    """A list of which no line is a path: the error says what there is."""
    ran = _list(bench, "\n".join(lines).encode())
    assert ran.code == 2 and f"there is {PATHS[0]}; write one path a line" in ran.text, ran.text
    return ran


@case(KIND, "a list of images in quotes")
def list_quotes(bench: Bench) -> object:
    return _near(bench, [f'"{path}"' for path in PATHS])


@case(KIND, "a list of images and labels, two paths a line (MMSegmentation, Cityscapes)")
def list_pairs(bench: Bench) -> object:
    return _near(bench, [f"{path},labels/{index}.png" for index, path in enumerate(PATHS)])


@case(KIND, "a list of names without their endings (Pascal VOC's ImageSets)")
def list_stems(bench: Bench) -> object:
    return _near(bench, [path.removesuffix(".png") for path in PATHS])


@case(KIND, "a list of file:// URLs with %20")
def list_urls(bench: Bench) -> object:
    return _near(bench, [f"file://{bench.folder}/{path.replace('0', '%30')}" for path in PATHS])


@case(KIND, "a list that spells one image in three ways: it is one")
def list_spellings(bench: Bench) -> object:
    more = [f"./{PATHS[0]}", f"images/../{PATHS[0]}", *PATHS]
    return _all_three(bench, "\n".join(more).encode())


@case(KIND, "a list called LIST.TXT")
def list_capitals(bench: Bench) -> object:
    _all_three(bench, "\n".join(PATHS).encode())
    ran = cache_images(
        bench, (bench.folder / "list.txt").rename(bench.folder / "LIST.TXT"), bench.folder / "third"
    )
    assert ran.code == 0 and same_features(bench.folder / "third", bench.folder / "cache"), ran.text
    return ran


@case(KIND, "a list that begins with a comment: the line is counted as an image that is not there")
def list_comment(bench: Bench) -> object:
    ran = _list(bench, "\n".join(["# mine", *PATHS]).encode())
    assert len(features(bench.folder / "listed")) == 3
    assert "1 of 4 images could not be read" in ran.text and "# mine: no such file" in ran.text
    return f"{ran}, with the line"


@case(KIND, "a list of which one path is of another machine")
def list_elsewhere(bench: Bench) -> object:
    ran = _list(bench, "\n".join([*PATHS, "/mnt/elsewhere/1.jpg"]).encode())
    assert "1 of 4 images could not be read" in ran.text and "/mnt/elsewhere/1.jpg: no such file" in ran.text
    return f"{ran}, with the line"


@case(KIND, "classes.txt with a header over numbered names: `id name`, `0 red`")
def classes_header(bench: Bench) -> object:
    return _with_classes(
        bench, "\n".join(["id name", *(f"{i} {name}" for i, name in enumerate(CLASSES))]).encode()
    )


@case(KIND, "classes.txt whose numbers begin at 1: `1: red`")
def classes_from_one(bench: Bench) -> object:
    return _with_classes(bench, "\n".join(f"{i}: {name}" for i, name in enumerate(CLASSES, 1)).encode())


@case(KIND, "classes.txt with colours behind the names, and a header: `name,r,g,b`")
def classes_columns(bench: Bench) -> object:
    return _with_classes(bench, "\n".join(["name,r,g,b", *(f"{name},1,2,3" for name in CLASSES)]).encode())


@case(KIND, "classes.txt called CLASSES.TXT")
def classes_capitals(bench: Bench) -> object:
    finished_run(bench)
    root = folder(bench.folder / "day", PNG)
    (root / "classes.txt").rename(root / "CLASSES.TXT")
    assert list(open_dataset(f"folder:{root}").classes) == list(CLASSES)
    return evaluate(bench, root)[0]


@case(KIND, "a list of images written on a Mac (NFD), the files named in NFC")
def list_nfd(bench: Bench) -> object:
    photos, name = write_images(bench.folder / "photos", 1), "été.png"
    (photos / "000.png").rename(photos / unicodedata.normalize("NFC", name))
    (bench.folder / "list.txt").write_text(f"photos/{unicodedata.normalize('NFD', name)}\n", encoding="utf-8")
    ran = cache_images(bench, bench.folder / "list.txt", bench.folder / "cache")
    assert ran.code == 0 and len(features(bench.folder / "cache")) == 1, ran.text
    return ran


def _rename(root: Path, image: str, label: str) -> None:
    (root / "images/000.png").rename(root / f"images/{image}.png")
    (root / "labels/000.png").rename(root / f"labels/{label}.png")


@case(KIND, "images named in NFC, their labels in NFD")
def pairs_nfd(bench: Bench) -> object:
    root = folder(bench.folder / "day", PNG)
    _, before = evaluate(bench, root)
    _rename(root, unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été"))
    ran, after = evaluate(bench, root)
    assert before == after and before[0] > 0
    return ran


@case(KIND, "a dataset's folder named in NFC on the command line, in NFD on the disk")
def folder_nfd(bench: Bench) -> object:
    folder(bench.folder / unicodedata.normalize("NFD", "été"), PNG)
    run, path = finished_run(bench), bench.folder / unicodedata.normalize("NFC", "été")
    return bench.cli("evaluate", run, "--data", f"day=folder:{path}")


@case(KIND, "a folder of images named in NFC on the command line, in NFD on the disk")
def images_nfd(bench: Bench) -> object:
    write_images(bench.folder / unicodedata.normalize("NFD", "été"), 1)
    return cache_images(bench, bench.folder / unicodedata.normalize("NFC", "été"), bench.folder / "cache")


@case(KIND, "two images of one name, in NFC and in NFD")
def twins_nfd(bench: Bench) -> object:
    root = folder(bench.folder / "day", PNG)
    _rename(root, unicodedata.normalize("NFC", "été"), "été")
    (root / "images/001.png").rename(root / f"images/{unicodedata.normalize('NFD', 'été')}.png")
    return evaluate(bench, root)[0]
