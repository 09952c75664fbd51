"""What a training run does with the cache's odds and ends: URL, certificate, ledger, damage."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from gkd_scale.cache.shard import parse_index
from tests import warm
from tests.conftest import BIN, ROOT, Result, tiny_args

pytestmark = pytest.mark.e2e


def train(cache: object, out: Path, *more: object) -> Result:
    student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "--global-batch", 6]
    flags = ["--ds-config", "zero1.json", "--cache", cache, "--out", out, "--steps", 6, *student, *more]
    return warm.run([sys.executable, ROOT / "launchers/stage1.py", *flags], out.parent)


def test_a_ledger_of_a_run_from_a_url_proves_each_sample_once(tiny_cache: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    push = warm.run([BIN / "gkd-scale", "push", tiny_cache, "--to", url], tmp_path)
    assert push.code == 0 and "is complete" in push.text
    result = train(url, tmp_path / "run", "--ledger", "--mirror", tmp_path / "mirror")
    assert result.code == 0, result.text
    assert "fp16 tokens" in result.text
    check = warm.run([BIN / "gkd-scale", "verify", tiny_cache, "--ledger", tmp_path / "run/ledger"], tmp_path)
    assert check.code == 0 and "ledger: 3 whole epochs, 0 faults" in check.text, check.text


def test_damage_stops_a_run_or_is_skipped_and_counted(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache"))
    member = parse_index((cache / "v00/shard-000000.parquet").read_bytes()).members[3]
    data = bytearray((cache / "v00/shard-000000.tar").read_bytes())
    data[member.offset + member.bytes - 1] ^= 1
    (cache / "v00/shard-000000.tar").write_bytes(data)
    result = train(cache, tmp_path / "run")
    assert result.code == 1 and "Traceback" not in result.text
    assert f"{member.sid}.{member.member}: CRC32 mismatch" in result.text
    assert f"gkd-scale repair {cache}" in result.text
    again = train(cache, tmp_path / "run", "--on-corrupt", "skip")
    assert again.code == 0, again.text
    assert "1 damaged samples were skipped" in again.text
