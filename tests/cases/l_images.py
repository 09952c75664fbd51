"""Kind L, of ``--images``: what is accepted, and what to do with what is not."""

from __future__ import annotations

import gzip
import io
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cache.archives import tar_of, write_tar
from tests.cases.case import Bench, case
from tests.cases.g_tars import IMAGES, cache, holds, members, nothing_written

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
def joined(bench: Bench) -> object:
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
