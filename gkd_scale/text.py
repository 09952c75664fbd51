"""Small text files that people write by hand, and names that look alike.

UTF-8, with or without byte order marks, with any line ends; another encoding is an error that says so.
Names are compared in Unicode's form NFC: macOS writes "é" as two characters, everybody else as one.
"""

from __future__ import annotations

import codecs
import re
import shlex
import unicodedata
from pathlib import Path

from gkd_scale.errors import DataError

_UNSEEN = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_TWINS = str.maketrans("аеорсухіјѕԁһΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХ", "aeopcyxijsdhABEZHIKMNOPTYXABEKMHOPCTX")
"""Cyrillic and Greek letters that look like Latin ones."""


def read_lines(path: Path, *, names: bool = False) -> list[str]:
    """The lines of a text file that say something, without blanks and invisible characters around them.

    With ``names``, bytes that are not UTF-8 stay as Python's file names have them. DataError for a file in
    another encoding, OSError for one that cannot be read.
    """
    text = _decode(path, path.read_bytes(), names)
    lines = (_bare(line) for line in re.split(r"\r\n|\r|\n", text))
    return [line for line in lines if line]


def nfc(name: str) -> str:
    """``name`` in the form in which names are compared."""
    return unicodedata.normalize("NFC", name)


def spelling(path: Path) -> Path:
    """``path``, or the same path in another Unicode form if only that exists."""
    if str(path).isascii() or path.exists():
        return path
    others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in others if other.exists()), path)


def quote(name: str, other: str = "") -> str:
    """``name`` in quotes; in ASCII if it looks like ``other`` or hides a character."""
    return ascii(name) if _skeleton(name) == _skeleton(other) or _hides(name) else repr(name)


def _decode(path: Path, data: bytes, names: bool) -> str:
    for mark, encoding in _WIDE.items():
        if data.startswith(mark):
            raise _not_utf8(path, f"is {encoding}, not UTF-8", encoding)
    if b"\0" in data:
        at = data.index(b"\0")
        raise _not_utf8(
            path, f"holds a zero byte (at {at}): it is UTF-16 without a mark, or no text", "UTF-16LE"
        )
    try:
        return data.decode("utf-8", "surrogateescape" if names else "strict")
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n|\r|\n", data[: error.start]))
        byte = data[error.start]
        raise _not_utf8(path, f"is not UTF-8: byte 0x{byte:02x} in line {line}", "WINDOWS-1252") from None


def _not_utf8(path: Path, what: str, encoding: str) -> DataError:
    old, new = (shlex.quote(str(name)) for name in (path, path.with_name(f"{path.name}.new")))
    return DataError(
        f"{path} {what}",
        f"save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 {old} > {new} && mv {new} {old}",
    )


def _bare(line: str) -> str:
    """``line`` without spaces around it, and without the marks that joined files leave at its start."""
    while (bare := line.strip().strip(_UNSEEN)) != line:
        line = bare
    return line


def _hides(name: str) -> bool:
    return any(unicodedata.category(letter) in ("Cf", "Zs", "Cc") and letter != " " for letter in name)


def _skeleton(name: str) -> str:
    """What a reader sees of a name."""
    full = unicodedata.normalize("NFKD", name.translate(_TWINS))
    letters = (letter for letter in full if unicodedata.category(letter) not in ("Mn", "Cf"))
    return " ".join("".join(letters).split())
