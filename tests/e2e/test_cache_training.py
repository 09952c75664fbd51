"""What a training run does with the cache's odds and ends: URL, certificate, ledger, damage."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from gkd_scale.cache.shard import parse_index
from tests import warm
from tests.conftest import BIN, ROOT, Done, tiny_args

pytestmark = pytest.mark.e2e


def train(cache: object, out: Path, *more: object) -> Done:
    student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "--global-batch", 6]
    flags = ["--ds-config", "zero1.json", "--cache", cache, "--out", out, "--steps", 6, *student, *more]
    return warm.run([sys.executable, ROOT / "launchers/stage1.py", *flags], out.parent)


def test_a_ledger_of_a_run_from_a_url_proves_each_sample_once(tiny_cache: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    pushed = warm.run([BIN / "gkd-scale", "push", tiny_cache, "--to", url], tmp_path)
    assert pushed.code == 0 and "is complete" in pushed.text
    done = train(url, tmp_path / "run", "--ledger", "--mirror", tmp_path / "mirror")
    assert done.code == 0, done.text
    assert "fp16 tokens" in done.text
    checked = warm.run(
        [BIN / "gkd-scale", "verify", tiny_cache, "--ledger", tmp_path / "run/ledger"], tmp_path
    )
    assert checked.code == 0 and "ledger: 3 whole epochs, 0 faults" in checked.text, checked.text


def test_damage_stops_a_run_or_is_skipped_and_counted(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache"))
    member = parse_index((cache / "v00/shard-000000.parquet").read_bytes()).members[3]
    data = bytearray((cache / "v00/shard-000000.tar").read_bytes())
    data[member.offset + member.bytes - 1] ^= 1
    (cache / "v00/shard-000000.tar").write_bytes(data)
    stopped = train(cache, tmp_path / "run")
    assert stopped.code == 1 and "Traceback" not in stopped.text
    assert f"{member.sid}.{member.member}: CRC32 mismatch" in stopped.text
    assert f"gkd-scale repair {cache}" in stopped.text
    skipped = train(cache, tmp_path / "run", "--on-corrupt", "skip")
    assert skipped.code == 0, skipped.text
    assert "1 damaged samples were skipped" in skipped.text
