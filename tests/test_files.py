"""Files are whole or not there; a lock says who holds a folder, and goes with its process."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gkd_scale import files
from gkd_scale.errors import CacheError, DamageError, RunError
from tests.conftest import environment


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.bin"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.atomic(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_json_has_one_form(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [1, 2]})
    files.write_json(tmp_path / "b.json", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert files.sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------ locks

HOLD = """
import os, sys
from pathlib import Path
from gkd_scale import files
with files.claim(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "work").touch()
    if os.fork() == 0:  # a child that outlives it holds nothing, from its first line on
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_a_held_folder_is_refused_by_name_and_kill_9_lets_go_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    process = holder(folder)
    assert process.stdin is not None and process.stdout is not None
    try:
        with pytest.raises(CacheError) as error, files.claim(folder, CacheError):
            pass
        message = f"another process is writing {folder}: process {process.pid} on {os.uname().nodename} (-c)"
        assert error.value.message == message
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with files.claim(folder):
        assert (folder / files.LOCK).exists()
    assert [path.name for path in folder.iterdir()] == ["work"]
    process.stdin.close()
    process.stdout.close()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), files.claim(tmp_path / "a/b"):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    with files.claim(tmp_path / "kept"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_one_that_waits_gets_its_turn_and_all_take_turns(tmp_path: Path) -> None:
    """Many at once, each of which removes the lock's file at its end: never two inside."""
    inside, most, waits = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with files.claim(tmp_path / "out", wait=lambda: waits.append(1)):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and waits


def test_equals_share_and_others_are_refused(tmp_path: Path) -> None:
    def check(holder: str, theirs: str, ours: str) -> None:
        assert str(os.getpid()) in holder
        if theirs != ours:
            raise RunError("other settings")

    path = tmp_path / "lock"
    with (
        files.share(path, "a", check),
        files.share(path, "a", check),
        pytest.raises(RunError, match="other settings"),
        files.share(path, "b", check),
    ):
        pass
    with files.share(path, "b", check):
        pass


def test_a_place_that_is_no_folder_or_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not a folder"), files.claim(tmp_path / "file"):
        pass

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    message = r"\.lock cannot be written: Permission denied"
    with pytest.raises(RunError, match=message), files.claim(tmp_path / "there"):
        pass


def test_a_file_system_without_locks_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    with files.claim(tmp_path / "out"), files.claim(tmp_path / "out"):
        pass


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_record_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DamageError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")
    assert files.read_json(tmp_path / "nowhere.json") == {}


def test_a_whole_folder_or_none(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), files.whole_folder(out) as folder:
        (folder / "half").write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    stale = out.with_name(".out.part") / "folder"
    stale.mkdir(parents=True)
    (stale / "of a killed process").write_text("")
    with files.whole_folder(out) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "inner/file").read_text() == "whole" and len(list(out.iterdir())) == 1
    with pytest.raises(RunError, match="exists already"), files.whole_folder(out):
        pass
