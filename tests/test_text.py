"""Text files that people write, and names that look alike."""

from __future__ import annotations

import codecs
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.errors import DataError
from gkd_scale.text import nfc, quote, read_lines


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "a list.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_line_ends_and_marks(tmp_path: Path, end: str, mark: bytes) -> None:
    text = end.join(["", "sky", "  old town ", "", "été\u2028x", "\ufeff", "end"])
    assert read_lines(write(tmp_path, mark + text.encode())) == ["sky", "old town", "été\u2028x", "end"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-32-be"])
def test_other_encodings_are_named_and_the_printed_command_mends_them(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "ciel\nété\n".encode(encoding))
    with pytest.raises(DataError) as error:
        read_lines(path)
    assert "UTF-8" in error.value.message or "UTF-16" in error.value.message
    if encoding in ("utf-16", "utf-16-le", "latin-1", "utf-32"):
        command = re.sub("^.*example: ", "", error.value.hint)
        subprocess.run(command, shell=True, check=True)
        assert read_lines(path) == ["ciel", "été"]


def test_file_names_may_be_no_unicode(tmp_path: Path) -> None:
    path = write(tmp_path, b"caf\xe9.jpg\n")
    assert read_lines(path, names=True) == ["caf\udce9.jpg"]
    with pytest.raises(DataError, match="byte 0xe9 in line 1"):
        read_lines(path)


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_are_shown_apart(one: str, other: str) -> None:
    if one != other:
        assert quote(one, other) != quote(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
        ("car", "с\u0430r"),
        ("car", "car\u200b"),
        ("old town", "old\u00a0town"),
        ("A", "\u0391"),
    ],
)
def test_names_that_look_alike_are_shown_in_ascii(one: str, other: str) -> None:
    assert quote(one, other).isascii() and quote(other, one).isascii()
    assert quote(one, other) != quote(other, one)


def test_names_that_differ_are_shown_as_they_are() -> None:
    assert quote("été", "hiver") == "'été'" and nfc("e\u0301") == "é"
