"""Kind L, of ``--images``: what is accepted, and what to do with what is not."""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.cache.archives import tar_of, write_tar
from tests.cases.case import Bench, case
from tests.cases.g_tars import IMAGES, cache, holds, mask, members, nothing_written

KIND = "L. Wrong cause or no next step"


@case(KIND, "`--images x.tar.gz`, and what it says to do")
def tar_gz(bench: Bench) -> object:
    path = bench.folder / "x.tar.gz"
    path.write_bytes(gzip.compress(tar_of(members(IMAGES[:2]))))
    ran = nothing_written(bench, cache(bench, path))
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    assert holds(bench, cache(bench, path.with_suffix("")), 2)
    return ran


@case(KIND, "`--images 'train-{000..012}.tgz'`")
def tgz(bench: Bench) -> object:
    return nothing_written(bench, cache(bench, bench.folder / "train-{000..012}.tgz"))


@case(KIND, "`--images photos.zip`")
def zip_file(bench: Bench) -> object:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("0.jpg", IMAGES[0])
    (bench.folder / "photos.zip").write_bytes(buffer.getvalue())
    return nothing_written(bench, cache(bench, bench.folder / "photos.zip"))


@case(KIND, "`--images FOLDER` that holds tars, and what it says to do")
def folder_of_tars(bench: Bench) -> object:
    for part in range(2):
        write_tar(bench.folder / f"train/{part}.tar", members(IMAGES[part : part + 1]))
    ran = nothing_written(bench, cache(bench, bench.folder / "train"))
    assert holds(bench, cache(bench, bench.folder / "train/*.tar"), 2)
    return ran


@case(KIND, "`--images 'a.tar::b.tar'`, as webdataset joins URLs")
def join(bench: Bench) -> object:
    for part, name in enumerate("ab"):
        write_tar(bench.folder / f"{name}.tar", members(IMAGES[part : part + 1]))
    return holds(bench, cache(bench, f"{bench.folder}/a.tar::{bench.folder}/b.tar"), 2)


@case(KIND, "`--images 'pipe:curl -s https://host/train-{00..12}.tar'`")
def pipe(bench: Bench) -> object:
    return nothing_written(bench, cache(bench, "pipe:curl -s https://host/train-{00..12}.tar"))


@case(KIND, "`--images list.parquet` without a column 'path'")
def parquet_columns(bench: Bench) -> object:
    table = pa.table({"file_name": ["0.jpg"], "label": [1]})
    pq.write_table(table, bench.folder / "list.parquet")
    return nothing_written(bench, cache(bench, bench.folder / "list.parquet"))


@case(KIND, "`--images data.parquet` with the images inside, as Hugging Face stores them")
def parquet_images(bench: Bench) -> object:
    table = pa.table({"image": [{"bytes": IMAGES[0], "path": "0.jpg"}], "label": [1]})
    pq.write_table(table, bench.folder / "data.parquet")
    return nothing_written(bench, cache(bench, bench.folder / "data.parquet"))


@case(KIND, "`--images train.csv`")
def csv(bench: Bench) -> object:
    (bench.folder / "train.csv").write_text("path,label\n0.jpg,1\n")
    return nothing_written(bench, cache(bench, bench.folder / "train.csv"))


@case(KIND, "`--images photo.jpg`")
def one_image(bench: Bench) -> object:
    (bench.folder / "photo.jpg").write_bytes(IMAGES[0])
    return nothing_written(bench, cache(bench, bench.folder / "photo.jpg"))


@case(KIND, "`--images data.tar.part00`, a piece of a split tar")
def piece(bench: Bench) -> object:
    (bench.folder / "data.tar.part00").write_bytes(tar_of(members(IMAGES[:2]))[:1024])
    return nothing_written(bench, cache(bench, bench.folder / "data.tar.part00"))


@case(KIND, "`--images 'train-{00..02.tar'`, a brace that is not closed")
def open_brace(bench: Bench) -> object:
    return nothing_written(bench, cache(bench, bench.folder / "train-{00..02.tar"))


def _folder(bench: Bench, files: dict[str, bytes]) -> Path:
    """A folder with these files."""
    for name, data in files.items():
        path = bench.folder / "town" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return bench.folder / "town"


@case(KIND, "`--images town`, where town/images and town/labels are: labels are no images")
def labels_beside(bench: Bench) -> object:
    files = {f"images/{index}.jpg": IMAGES[index] for index in range(2)}
    files |= {f"labels/{index}.png": mask(index) for index in range(2)}
    return holds(bench, cache(bench, _folder(bench, files)), 2)


@case(KIND, "`--images cityscapes`, the folder above leftImg8bit and gtFine")
def cityscapes(bench: Bench) -> object:
    files = {f"leftImg8bit/train/ulm/ulm_{index}_leftImg8bit.jpg": IMAGES[index] for index in range(2)}
    for kind in ("labelIds", "instanceIds"):
        files |= {f"gtFine/train/ulm/ulm_{index}_gtFine_{kind}.png": mask(index) for index in range(2)}
    return holds(bench, cache(bench, _folder(bench, files)), 2)


@case(KIND, "a folder of photographs called `mask`, beside others: they stay")
def photographs_of_masks(bench: Bench) -> object:
    png = io.BytesIO()
    Image.open(io.BytesIO(IMAGES[1])).save(png, "PNG")
    return holds(
        bench, cache(bench, _folder(bench, {"cat/0.jpg": IMAGES[0], "mask/1.png": png.getvalue()})), 2
    )


@case(KIND, "`@eaDir`, `__MACOSX`, `.ipynb_checkpoints`, Thumbs.db and .DS_Store in a folder")
def of_systems(bench: Bench) -> object:
    thumbnails = ["@eaDir/0.jpg/SYNOPHOTO_THUMB_XL.jpg", ".ipynb_checkpoints/0-checkpoint.jpg"]
    others = {"__MACOSX/._0.jpg": b"\0\5\x16\7", "Thumbs.db": b"x", ".DS_Store": b"x"}
    files = {"0.jpg": IMAGES[0], **dict.fromkeys(thumbnails, IMAGES[1]), **others}
    return holds(bench, cache(bench, _folder(bench, files)), 1)


@case(KIND, "`.jfif`, `.heic` and `.xml` beside the images")
def other_endings(bench: Bench) -> object:
    files = {"0.jpg": IMAGES[0], "1.jfif": IMAGES[1], "2.heic": b"heic", "0.xml": b"<a/>"}
    return holds(bench, cache(bench, _folder(bench, files)), 1)


@case(KIND, "a folder of zips, of files without an ending, of MosaicML's shards")
def no_images(bench: Bench) -> object:
    outcomes = []
    for names in (["a.zip", "b.zip"], ["n0144", "n0145"], ["shard.00000.mds", "index.json"]):
        town = _folder(bench, dict.fromkeys(names, b"x"))
        outcomes.append(str(nothing_written(bench, cache(bench, town))))
        shutil.rmtree(town)
    return "; ".join(outcome.partition(" → ")[0] for outcome in outcomes)
