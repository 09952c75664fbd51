"""Kind D: two commands in one folder, at once or one after the other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from gkd_scale import files
from tests.cases import tiny
from tests.cases.case import Bench, Ran, case
from tests.conftest import ROOT, cache_flags, write_images

KIND = "D. Two commands in one folder"


def masked(ran: Ran) -> str:
    """The outcome without the process's number, machine and program."""
    text, count = re.subn(r"process \d+ on \S+ \([^)]*\)", "process PID on HOST (PROGRAM)", str(ran))
    assert count == 1, text
    return text


def listing(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(bench: Bench, out: Path) -> None:
    """A stage-1 run in ``out`` that was killed before its first checkpoint."""
    assert bench.stage1(*tiny.stage1(out, "--lr", "1e-3")).code == 0
    shutil.rmtree(out / "checkpoints")
    (out / "run.json").unlink()


@case(KIND, "a second stage1.py with another --lr and --seed in the --out of one that trains")
def second_stage1(bench: Bench) -> object:
    out = bench.folder / "run"
    hold = "import sys; from pathlib import Path; from gkd_scale import files; "
    hold += f"claim = files.claim(Path({str(out)!r})); claim.__enter__(); "
    first = subprocess.Popen(
        [sys.executable, "-c", f"{hold}print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        refusal = bench.stage1(*tiny.stage1(out, "--lr", "1e-3", "--seed", 1))
        assert f"process {first.pid} on " in refusal.text
        assert set(listing(out)) == {".lock"}
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert bench.stage1(*tiny.stage1(out)).code == 0  # the lock went with its process
    return masked(refusal)


@case(KIND, "a second stage2.py in the --out of one that trains")
def second_stage2(bench: Bench) -> object:
    with files.claim(bench.folder / "run"):
        return masked(bench.stage2(*tiny.stage2(bench.folder / "run")))


@case(KIND, "several students into OUT, of which one trains there already")
def several_students(bench: Bench) -> object:
    out = bench.folder / "both"
    with files.claim(out / "vit_tiny_patch16_224"):
        ran = bench.stage1(*tiny.stage1(out, "--student", "vit_small_patch16_224"))
        assert {path.name for path in out.iterdir()} == {"vit_tiny_patch16_224"}
    return masked(ran)


@case(KIND, "a second tuning/search.py in one --out")
def second_search(bench: Bench) -> object:
    with files.claim(bench.folder / "tune"):
        return masked(search(bench))


@case(KIND, "a second cache-teacher in one --out")
def second_cache(bench: Bench) -> object:
    out = bench.folder / "cache"
    with files.claim(out):
        return masked(bench.cli("cache-teacher", *cache_flags(tiny.images(), tiny.teacher(), out)))


@case(KIND, "repair of a cache that is being built")
def repair_while_building(bench: Bench) -> object:
    out = bench.folder / "cache"
    shutil.copytree(tiny.cache(), out)
    (out / "v00/shard-000000.tar").write_bytes(b"damaged")
    with files.claim(out):
        weights = ("--teacher-weights", tiny.teacher())
        ran = bench.cli("repair", out, "--images", tiny.images(), *weights)
        assert (out / "v00/shard-000000.tar").read_bytes() == b"damaged"
    return masked(ran)


@case(KIND, "a second demo with another --seed in one --out")
def second_demo(bench: Bench) -> object:
    with files.claim(bench.folder / "demo"):
        return masked(bench.cli("demo", "--out", bench.folder / "demo", "--launchers", ROOT / "launchers"))


@case(KIND, "a second benchmark with other --passes in one --out")
def second_benchmark(bench: Bench) -> object:
    out = bench.folder / "bench"
    out.mkdir()
    with files.share(out / files.LOCK, "another recipe", lambda *_: None):
        recipe = ROOT / "benchmarks/recipes/embedded.yaml"
        flags = ["--passes", 4000, "--out", out, "--launchers", ROOT / "launchers"]
        return masked(bench.cli("benchmark", recipe, *flags))


@case(KIND, "another --lr where the first run was killed before its first checkpoint")
def other_settings(bench: Bench) -> object:
    out = bench.folder / "run"
    begin(bench, out)
    before = listing(out)
    refusal = bench.stage1(*tiny.stage1(out, "--lr", "2e-3"))
    assert listing(out) == before  # config.yaml too is the first one's
    assert bench.stage1(*tiny.stage1(out, "--lr", "1e-3")).code == 0
    return refusal


@case(KIND, "the same, begun by an older version (a config.yaml alone)")
def older_settings(bench: Bench) -> object:
    out = bench.folder / "run"
    begin(bench, out)
    (out / "begun.json").unlink()
    return bench.stage1(*tiny.stage1(out, "--lr", "2e-3"))


@case(KIND, "the same, where an older version left checkpoints: first other settings, then the right ones")
def older_checkpoint(bench: Bench) -> object:
    out = bench.folder / "run"
    assert bench.stage1(*tiny.stage1(out, "--lr", "1e-3")).code == 0
    for name in ("begun.json", "run.json"):
        (out / name).unlink()
    before = listing(out)
    refusal = bench.stage1(*tiny.stage1(out, "--lr", "2e-3"))
    assert listing(out) == before
    assert bench.stage1(*tiny.stage1(out, "--lr", "1e-3")).code == 0
    return refusal


@case(KIND, "stage2.py in the --out of a begun stage 1")
def other_kind(bench: Bench) -> object:
    out = bench.folder / "run"
    begin(bench, out)
    return bench.stage2(*tiny.stage2(out))


@case(KIND, "stage1.py with a teacher cache as --out")
def into_a_cache(bench: Bench) -> object:
    out = bench.folder / "cache"
    shutil.copytree(tiny.cache(), out)
    before = listing(out)
    ran = bench.stage1(*tiny.stage1(out))
    assert listing(out) == before
    return ran


@case(KIND, "phase 2 from a run that another process holds, and evaluate while a run trains")
def readers(bench: Bench) -> object:
    first, head = bench.folder / "1a", bench.folder / "head"
    assert bench.stage1(*tiny.stage1(first)).code == 0
    assert bench.stage2(*tiny.stage2(head)).code == 0
    with files.claim(first), files.claim(head):
        after = bench.stage1(*tiny.stage1(bench.folder / "1b", "--student-weights", first))
        evaluation = bench.cli("evaluate", head, "--data", f"val=folder:{tiny.scenes() / 'val'}")
    assert (head / "evaluation.json").is_file()
    assert after.code == 0, after.text
    return evaluation


@case(KIND, "predict of other images, of the same names, into one --out")
def other_images(bench: Bench) -> object:
    head, out = bench.folder / "head", bench.folder / "masks"
    assert bench.stage2(*tiny.stage2(head)).code == 0
    first = write_images(bench.folder / "a", 2)
    assert bench.cli("predict", head, "--images", first, "--out", out).code == 0
    before = listing(out)
    refusal = bench.cli(
        "predict", head, "--images", write_images(bench.folder / "b", 2, seed=1), "--out", out
    )
    assert listing(out) == before
    write_images(first, 3)  # the same folder may grow
    assert bench.cli("predict", head, "--images", first, "--out", out).code == 0
    assert (out / "masks/002.png").is_file()
    return refusal


@case(KIND, "evaluate --json with a folder in the place of the file")
def folder_for_a_file(bench: Bench) -> object:
    head = bench.folder / "head"
    assert bench.stage2(*tiny.stage2(head)).code == 0
    flags = ("--data", f"val=folder:{tiny.scenes() / 'val'}", "--json", tiny.scenes() / "val")
    return str(bench.cli("evaluate", head, *flags)).replace(str(tiny.scenes()), "scenes")


@case(KIND, "a command that is refused (no such weights), then the mended one in the same --out")
def mend(bench: Bench) -> object:
    out = bench.folder / "run"
    refusal = bench.stage1(*tiny.stage1(out, "--student-weights", bench.folder / "nowhere.safetensors"))
    assert refusal.code == 2 and not out.exists(), refusal.text
    refusal = bench.stage2(*tiny.stage2(out, "--image-size", "30x48"))
    assert refusal.code == 2 and not out.exists(), refusal.text
    return bench.stage1(*tiny.stage1(out))


SPACE = "optim.lr: choice(1e-3, 3e-3)\nglobal_batch: 4\n"


def search(bench: Bench, *more: object, space: str = SPACE) -> Ran:
    """``tuning/search.py`` into ``tune``, as far as it comes before Ray."""
    path = bench.folder / "space.yaml"
    path.write_text(space)
    data = ["--train", f"folder:{tiny.scenes() / 'fit'}", "--val", f"folder:{tiny.scenes() / 'val'}"]
    flags = ["--space", path, "--cache", tiny.cache(), *tiny.STUDENT, "--ds-config", "zero0.json", *data]
    flags += ["--steps", 4, "--num-trials", 1, "--out", bench.folder / "tune", *more]
    return bench.tune(*flags)
