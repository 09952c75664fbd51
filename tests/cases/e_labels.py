"""Kind E: labels that cannot be what they seem, in ``datasets check`` and before stage 2 alike."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from gkd_scale.types import UInt8Array
from tests.cases.case import Bench, Ran, case
from tests.segment.datasets.miniature import write_grey
from tests.segment.support import blocks, picture, tiny_backbone

KIND = "E. Labels that cannot be what they seem"
SIZE = (64, 96)
NAMES = "red\ngreen\nblue\ngrey\n"

Change = Callable[[UInt8Array, Path], object]
"""Writes a label (H, W) of the classes 0 to 3 in another way."""


@functools.cache
def backbone() -> Path:
    folder = Path(tempfile.mkdtemp())
    tiny_backbone().save(folder)
    return folder


def folder(bench: Bench, change: Change, classes: str | None = None, name: str = "town") -> Path:
    """Four pictures of their labels; ``change`` writes the labels."""
    root = bench.folder / name
    for index in range(4):
        label = blocks(SIZE, index)
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(label)).save(root / f"images/{index}.png")
        change(label, root / f"labels/{index}.png")
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root


def table(*values: int) -> Change:
    """Other stored values for the classes 0, 1, 2, 3."""
    return lambda label, path: Image.fromarray(np.array(values, np.uint8)[label]).save(path)


def stage2(bench: Bench, ref: object, name: str = "run") -> Ran:
    return bench.stage2(
        *("--train", ref, "--val", ref, "--backbone", backbone(), "--image-size", "32x48", "--steps", 4),
        *("--global-batch", 4, "--val-every", 4, "--out", bench.folder / name, "--workers", 0),
    )


def refusal(bench: Bench, root: Path, adapter: str = "folder") -> Ran:
    """Stage 2 refuses the labels, and ``datasets check`` for the same reason."""
    path, at, part = str(root).partition("@")
    result = stage2(bench, f"{adapter}:{path}{at}{part}")
    assert result.code == 2, result.text
    check = bench.cli("datasets", "check", adapter, f"{path}{at}{part}")
    reason = str(result).partition(": ")[2].partition(" → ")[0]
    assert check.code in (1, 2) and reason.partition(": ")[2] in check.text, (reason, check.text)
    return result


def notice(bench: Bench, root: Path) -> str:
    """Stage 2 trains on the labels, and both commands say what is odd."""
    result = stage2(bench, f"folder:{root}")
    assert result.code == 0, result.text
    lines = [line for line in result.raw.splitlines() if line.startswith("warning: ")]
    assert lines, result.text
    warning = bench.plain(lines[0]).removeprefix("warning: ")
    check = bench.cli("datasets", "check", "folder", root)
    assert check.code == 0 and warning.partition(": ")[2] in check.text, (warning, check.text)
    return f"ok, with a warning: {warning}"


def score(bench: Bench, name: str) -> float:
    return float(json.loads((bench.folder / name / "best.json").read_text())["miou"])


def as_usual(bench: Bench, root: Path) -> str:
    """Stage 2 scores as it does with the same labels in a usual form."""
    plain = folder(bench, table(0, 1, 2, 3), name="plain")
    for ref, name in ((plain, "usual"), (root, "odd")):
        ran = stage2(bench, f"folder:{ref}", name)
        assert ran.code == 0 and "warning" not in ran.text, ran.text
    assert score(bench, "usual") == score(bench, "odd") > 0
    assert bench.cli("datasets", "check", "folder", root).code == 0
    return "ok"


# ------------------------------------------------------------------------------------- values


@case(KIND, "masks of 0 and 255, where 255 is ignored")
def bin0(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 255, 0, 255)))


@case(KIND, "the same with two names in classes.txt")
def bin0_named(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 255, 0, 255), "ground\nhouse\n"))


@case(KIND, "one name in classes.txt, for masks of 0 and 1")
def one_name(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 1, 0, 1), "house\n"))


@case(KIND, "all labels are 0: an export that failed")
def empty(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 0, 0, 0)))


@case(KIND, "labels as PNGs of 4 bits: the score of 8 bits")
def four_bits(bench: Bench) -> object:
    return as_usual(bench, folder(bench, lambda label, path: write_grey(path, label, 4)))


@case(KIND, "labels as PNGs of 2 bits: the score of 8 bits")
def two_bits(bench: Bench) -> object:
    return as_usual(bench, folder(bench, lambda label, path: write_grey(path, label, 2)))


@case(KIND, "masks as PNGs of 1 bit")
def one_bit(bench: Bench) -> object:
    root = folder(bench, lambda label, path: write_grey(path, label % 2, 1))
    assert stage2(bench, f"folder:{root}").code == 0
    check = bench.cli("datasets", "check", "folder", root)
    assert check.code == 0 and "0 faults" in check.text
    return "ok"


@case(KIND, "4-bit labels that another tool saved in 8 bits: 0, 17, 34, 51")
def scale(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 17, 34, 51)))


@case(KIND, "three classes as 0, 127, 255, with their names in classes.txt")
def trimap(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 127, 255, 0), "ground\nedge\nhouse\n"))


@case(KIND, "colour labels turned to grey by luminance")
def luminance(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(picture(label)).convert("L").save(path)

    return refusal(bench, folder(bench, save))


@case(KIND, "masks with soft edges")
def soft(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        mask = Image.fromarray((255 * (label > 1)).astype(np.uint8))
        mask.filter(ImageFilter.GaussianBlur(1)).save(path)

    return refusal(bench, folder(bench, save))


def of_nine(bench: Bench, change: Callable[[UInt8Array], UInt8Array]) -> Path:
    """Labels of nine classes, changed, with nine names."""
    ids = np.array([0, 8, 3, 5], np.uint8)

    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(change(ids[label])).save(path)

    return folder(bench, save, "".join(f"class{number}\n" for number in range(9)))


def resize(label: UInt8Array, small: float, how: Image.Resampling) -> UInt8Array:
    """The label at ``small`` of its size, brought back with an interpolation."""
    size = (round(small * label.shape[1]), round(small * label.shape[0]))
    coarse = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return np.asarray(coarse.resize(label.shape[::-1], how)).clip(0, 8)


@case(KIND, "labels that were enlarged with bilinear interpolation: the classes between are no classes")
def bilinear(bench: Bench) -> object:
    return refusal(bench, of_nine(bench, lambda label: resize(label, 0.5, Image.Resampling.BILINEAR)))


@case(KIND, "labels that were enlarged with bicubic interpolation")
def bicubic(bench: Bench) -> object:
    return refusal(bench, of_nine(bench, lambda label: resize(label, 0.6, Image.Resampling.BICUBIC)))


@case(KIND, "labels that were made smaller with interpolation")
def smaller(bench: Bench) -> object:
    return refusal(bench, of_nine(bench, lambda label: resize(label, 3, Image.Resampling.BILINEAR)))


@case(KIND, "labels that were made smaller with the nearest neighbour")
def nearest(bench: Bench) -> object:
    root = of_nine(bench, lambda label: resize(label, 0.5, Image.Resampling.NEAREST))
    assert stage2(bench, f"folder:{root}").code == 0
    check = bench.cli("datasets", "check", "folder", root)
    assert check.code == 0 and "0 faults" in check.text
    return "ok"


@case(KIND, "labels that were JPEG once and are PNG now")
def once_jpeg(bench: Bench) -> object:
    def compress(label: UInt8Array) -> UInt8Array:
        buffer = io.BytesIO()
        Image.fromarray(label).save(buffer, "JPEG", quality=60)
        return np.asarray(Image.open(buffer)).clip(0, 8)

    return refusal(bench, of_nine(bench, compress))


@case(KIND, "masks of 0 and 255 among masks of 0 and 1")
def two_scales(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(((label > 1) * (255 if path.stem in "02" else 1)).astype(np.uint8)).save(path)

    return refusal(bench, folder(bench, save, "ground\nhouse\n"))


@case(KIND, "all labels are 0, with four names in classes.txt")
def empty_named(bench: Bench) -> object:
    root = folder(bench, table(0, 0, 0, 0), NAMES)
    check = bench.cli("datasets", "check", "folder", root)
    assert "the labels show one of 4 classes, 'red'" in check.text
    ran = stage2(bench, f"folder:{root}")
    assert ran.code == 2 and not (bench.folder / "run").exists()
    return ran


@case(KIND, "all labels are 255, with four names in classes.txt")
def void(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(255, 255, 255, 255), NAMES))


@case(KIND, "254 for void, beside three classes, with their names")
def void_254(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 1, 2, 254), "red\ngreen\nblue\n"))


@case(KIND, "254 for void, and no names")
def void_254_unnamed(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(0, 1, 2, 254)))


@case(KIND, "0 for void and 1 to 4 for the four names of classes.txt, as ADE20K has it")
def zero_is_void(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        ids = label + 1
        ids[:4] = 0
        Image.fromarray(ids).save(path)

    return refusal(bench, folder(bench, save, NAMES))


def sixteen(change: Callable[[npt.NDArray[np.uint16]], npt.NDArray[np.uint16]]) -> Change:
    return lambda label, path: Image.fromarray(change(label.astype(np.uint16))).save(path)


@case(KIND, "16-bit labels with 65535 for void")
def void_65535(bench: Bench) -> object:
    return refusal(bench, folder(bench, sixteen(lambda ids: np.where(ids == 3, np.uint16(65535), ids))))


@case(KIND, "16-bit instance ids (class x 256 + number)")
def instances_256(bench: Bench) -> object:
    return refusal(
        bench, folder(bench, sixteen(lambda ids: 256 * ids + np.arange(96, dtype=np.uint16) // 40))
    )


@case(KIND, "16-bit labels of class ids: the score of 8 bits")
def sixteen_bits(bench: Bench) -> object:
    return as_usual(bench, folder(bench, sixteen(lambda ids: ids)))


@case(KIND, "labels of 32-bit integers with -1 for void, as TIFF in labels/*.png")
def minus_one(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(np.where(label == 3, -1, label.astype(np.int32))).save(path, "TIFF")

    return refusal(bench, folder(bench, save))


@case(KIND, "one page a class (one-hot) in labels/*.png")
def one_hot(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        first, *others = (Image.fromarray((label == each).astype(np.uint8)) for each in range(4))
        first.save(path, "TIFF", save_all=True, append_images=others)

    return refusal(bench, folder(bench, save))


@case(KIND, "an empty file among the labels")
def no_bytes(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(label).save(path)
        if path.stem == "2":
            path.write_bytes(b"")

    return refusal(bench, folder(bench, save))


@case(KIND, "labels that lack one row, and labels turned by 90°")
def other_sizes(bench: Bench) -> object:
    refusal(
        bench, folder(bench, lambda label, path: Image.fromarray(label.T.copy()).save(path), name="turned")
    )
    return refusal(bench, folder(bench, lambda label, path: Image.fromarray(label[1:]).save(path)))


@case(KIND, "labels stored as 255 - id")
def inversion(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(255, 254, 253, 252)))


@case(KIND, "values 1 to 4 for the four names of classes.txt")
def from_one(bench: Bench) -> object:
    return refusal(bench, folder(bench, table(1, 2, 3, 4), NAMES))


@case(KIND, "values 1 to 4 and no classes.txt")
def from_one_unnamed(bench: Bench) -> object:
    return notice(bench, folder(bench, table(1, 2, 3, 4)))


# ------------------------------------------------------------------------------------- files


@case(KIND, "JPEG bytes in labels/*.png")
def jpeg(bench: Bench) -> object:
    return refusal(bench, folder(bench, lambda label, path: Image.fromarray(label).save(path, "JPEG")))


@case(KIND, "labels with single pixels of other classes everywhere")
def noise(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        random = np.random.default_rng(int(path.stem))
        pixels = np.where(random.random(SIZE) < 0.15, random.integers(0, 4, SIZE), label)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    return notice(bench, folder(bench, save, NAMES))


@case(KIND, "colour labels quantised file by file: palettes that differ")
def palettes(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        order = np.random.default_rng(int(path.stem)).permutation(4)
        image = Image.fromarray(np.argsort(order)[label].astype(np.uint8))
        image.putpalette(picture(order.astype(np.uint8)[None]).tobytes())
        image.save(path)

    return refusal(bench, folder(bench, save))


@case(KIND, "palettes that are only for show: the same indices in other colours")
def shown_otherwise(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        image = Image.fromarray(label)
        image.putpalette(bytes([int(path.stem)]) + bytes(range(50, 61)))
        image.save(path)

    return notice(bench, folder(bench, save, NAMES))


@case(KIND, "16-bit instance ids (class x 1000 + number)")
def instances(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(label.astype(np.uint16) * 1000 + 1000).save(path)

    return refusal(bench, folder(bench, save))


@case(KIND, "the class ids in the alpha channel of RGBA files")
def alpha(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        Image.fromarray(np.dstack([np.zeros((*SIZE, 3), np.uint8), label])).save(path)

    return refusal(bench, folder(bench, save))


@case(KIND, "class ids as RGB of three equal channels")
def three_channels(bench: Bench) -> object:
    return refusal(
        bench, folder(bench, lambda label, path: Image.fromarray(np.dstack([label] * 3)).save(path))
    )


def photo(index: int) -> UInt8Array:
    """A grey picture with noise, as photographs have it."""
    rng = np.random.default_rng(index)
    ramp = np.linspace(20, 220, SIZE[1])[None] + 12 * rng.standard_normal(SIZE)
    return ramp.clip(0, 252).astype(np.uint8)


@case(KIND, "images/ and labels/ swapped, grey photographs")
def swap(bench: Bench) -> object:
    return refusal(bench, folder(bench, lambda _, path: Image.fromarray(photo(int(path.stem))).save(path)))


@case(KIND, "images/ and labels/ swapped, colour photographs")
def swapped_colours(bench: Bench) -> object:
    def save(label: UInt8Array, path: Path) -> None:
        noise = np.random.default_rng(label.sum()).integers(0, 50, (*SIZE, 3))
        Image.fromarray((picture(label) // 2 + noise).astype(np.uint8)).save(path)

    return refusal(bench, folder(bench, save))


@case(KIND, "`x_mask.png` beside `x.png`")
def mask_names(bench: Bench) -> object:
    root = folder(bench, table(0, 1, 2, 3))
    for path in sorted((root / "labels").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    return refusal(bench, root)


# ------------------------------------------------------------------------------------- datasets


def cityscapes(bench: Bench, values: Sequence[int], kind: str) -> Path:
    """A miniature of Cityscapes whose labels ``*_{kind}.png`` hold ``values``."""
    root = bench.folder / "city"
    ids = np.resize(np.array(values, np.uint8).repeat(8), SIZE)
    for part in ("train", "val"):
        for index in range(2):
            image = root / f"leftImg8bit/{part}/ulm/ulm_{index}_leftImg8bit.png"
            label = root / f"gtFine/{part}/ulm/ulm_{index}_gtFine_{kind}.png"
            for path, pixels in ((image, np.dstack([ids] * 3)), (label, ids)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@case(KIND, "Cityscapes' train ids in `*_labelIds.png`")
def train_ids(bench: Bench) -> object:
    root = cityscapes(bench, [0, 1, 2, 8, 10, 13, 255], "labelIds")
    return refusal(bench, Path(f"{root}@train"), "cityscapes")


@case(KIND, "Cityscapes' label ids in `*_labelTrainIds.png`")
def label_ids(bench: Bench) -> object:
    root = cityscapes(bench, [7, 8, 11, 21, 23, 26], "labelTrainIds")
    return refusal(bench, Path(f"{root}@train"), "cityscapes")


@case(KIND, "`evaluate` on a domain whose labels hold train ids")
def evaluation(bench: Bench) -> object:
    good = cityscapes(bench, [7, 8, 11, 21, 23, 26], "labelIds").rename(bench.folder / "good")
    assert stage2(bench, f"cityscapes:{good}@train").code == 0
    bad = cityscapes(bench, [0, 1, 2, 8, 10, 13, 255], "labelIds")
    ran = bench.cli("evaluate", bench.folder / "run", "--data", f"town=cityscapes:{bad}@val")
    assert ran.code == 2 and not (bench.folder / "run/evaluation.json").exists()
    return ran


@case(KIND, "`cache-teacher --images folder:` with masks of 0 and 255")
def teacher_cache(bench: Bench) -> object:
    from tests.cases.g_tars import cache, nothing_written

    return nothing_written(bench, cache(bench, f"folder:{folder(bench, table(0, 255, 0, 255))}"))


@case(KIND, "`datasets convert` of masks of 0 and 255")
def conversion(bench: Bench) -> object:
    root = folder(bench, table(0, 255, 0, 255))
    ran = bench.cli("datasets", "convert", "folder", root, bench.folder / "out")
    assert ran.code == 2 and not (bench.folder / "out").exists(), ran.text
    return ran


@case(KIND, "`datasets convert`: one label of another size, or one image that is empty")
def converted_sizes(bench: Bench) -> object:
    outcomes = []
    for name, damage in (("size", "labels/0.png"), ("image", "images/0.png")):
        root = folder(bench, table(0, 1, 2, 3), NAMES, name)
        if name == "size":
            Image.fromarray(blocks((9, 9), 0)).save(root / damage)
        else:
            (root / damage).write_bytes(b"")
        ran = bench.cli("datasets", "convert", "folder", root, bench.folder / f"out-{name}")
        assert ran.code == 2 and not (bench.folder / f"out-{name}/converted.json").exists(), ran.text
        outcomes.append(str(ran).partition(" → ")[0])
    return "; ".join(outcomes)


@case(KIND, "`probe` on labels of one class: no 100 mIoU")
def probe(bench: Bench) -> object:
    from tests.cases.labelled import teacher_weights
    from tests.conftest import tiny_args

    root = folder(bench, table(0, 0, 0, 0), NAMES)
    ran = bench.cli(
        *("probe", "--teacher", "vit_tiny_patch16_224", "--teacher-weights", teacher_weights()),
        *("--teacher-args", *tiny_args(), "--image-size", "32x48", "--train", f"folder:{root}"),
        *("--val", f"folder:{root}", "--out", bench.folder / "probe"),
    )
    assert not (bench.folder / "probe").exists(), ran.text
    return ran


@case(KIND, "`report --data` on labels that were resized with interpolation")
def report(bench: Bench) -> object:
    plain = of_nine(bench, lambda label: label).rename(bench.folder / "plain")
    assert stage2(bench, f"folder:{plain}").code == 0
    bad = of_nine(bench, lambda label: resize(label, 0.5, Image.Resampling.BILINEAR))
    out = bench.folder / "report.html"
    ran = bench.cli("report", bench.folder / "run", "--data", f"day=folder:{bad}", "--out", out)
    assert ran.code == 2 and not out.exists(), ran.text
    return ran
