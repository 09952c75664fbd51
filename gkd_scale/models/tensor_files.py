"""Files of weights: recognises a file by its bytes, and reads its tensors by name.

Safetensors, or ``torch.load(weights_only=True)``; nothing that can run code. Nested dicts become names
joined by dots, so that ``{"model": {"norm.bias": …}}`` holds ``model.norm.bias``: ``layouts.py`` finds a
network by names alone. Anything else that people save or download as weights (a web page, a Git LFS pointer,
an archive, half a file) is refused with what it is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gkd_scale import files
from gkd_scale.commands import shell
from gkd_scale.errors import ModelError

StateDict = dict[str, Tensor]

_NUMPY = [
    (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
    for name, value in (("scalar", np.float64()), ("_reconstruct", np.empty(0)))
    for core in ("core", "_core")  # as NumPy 1 and 2 write it
]
HARMLESS: list[Any] = [
    *(list, dict, int, float, frozenset, datetime.datetime, argparse.Namespace),
    (int, "builtins.long"),  # as torch calls Python 2's
    *_NUMPY,
    *(np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"}),
    *((PurePath, f"pathlib.{name}") for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *((PurePath, f"pathlib._local.{name}") for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
]
"""What ``weights_only`` may make beside tensors: options, scores, paths and random states, as many projects
save them beside the network. None of it runs code."""

_LONGEST_HEADER = 100_000_000
"""Bytes: what the safetensors format allows."""

_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")

_AGAIN = "download the file itself again"
_UNPACK = "unpack it and give the weights file inside"
_CONVERT = "convert it to safetensors where you trust it, then give that file"
_GIVE_STATE = "give a safetensors file or a PyTorch state dict"
# By a file's first bytes: what it is, and what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "run 'git lfs pull' there"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file (Keras)", "give the model's PyTorch weights"),
    (b"GGUF", "a GGUF file, which is quantised", "give the model's safetensors or PyTorch weights"),
    (b"\x93NUMPY", "a NumPy array", _GIVE_STATE),
    (b"\x89PNG", "a PNG image", "check the path"),
    (b"\xff\xd8\xff", "a JPEG image", "check the path"),
    (b"%PDF", "a PDF document", _AGAIN),
)


def read_state_dict(path: Path) -> StateDict:
    """Tensors by name from a safetensors or PyTorch file, or from all parts of an index.json; ModelError."""
    try:
        state = _read(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from None
    if not state:
        raise ModelError(f"{path} holds no tensors", "give a file with a network's state dict")
    return state


def write_tensors(
    path: Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None, **metadata: str
) -> None:
    """Write a safetensors file, whole or not at all; ``dtype`` is what all tensors become, if given."""
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().to(dtype or t.dtype).contiguous().clone() for name, t in state.items()}
    files.write_bytes(path, save(tensors, metadata or None))


def below(state: StateDict, prefix: str) -> StateDict:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def index_of(path: Path) -> Path | None:
    """The index.json beside a file that is, by its name, one part of several."""
    part = _PART.fullmatch(path.name)
    return path.with_name(f"{part['stem']}{part['suffix']}.index.json") if part else None


def _read(path: Path, *, part: bool = False) -> StateDict:
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a weights file", file_in(path))
    if not path.is_file():
        local = re.match(r"\w+:/", str(path)) is None and path.suffix
        hint = "check the path" if local else "give a local .safetensors or .pth file: download it first"
        raise ModelError(f"there is no weights file {path}", hint)
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise ModelError(f"{path} is empty", _AGAIN)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return _safetensors(path)
    if head.lstrip()[:1] in (b"{", b"[") and not part:
        return _read_index(path)
    if head[:1] == b"\x80" or _is_zip(path):
        return _pytorch(path)
    if head.startswith(b"PK"):
        raise ModelError(f"{path} is cut short: the end of its zip archive is missing", _AGAIN)
    what, hint = _kind_of(head, path)
    raise ModelError(f"{path} is no weights file: it is {what}", hint)


def file_in(folder: Path) -> str:
    """The next step for someone who gave a folder instead of a file."""
    join = next((path for path in (folder, folder.parent) if (path / "zero_to_fp32.py").is_file()), None)
    if join is not None:
        command = shell("python", join / "zero_to_fp32.py", join, join / "joined")
        return f"it is DeepSpeed's: join its parts ({command}), then give the file in {join / 'joined'}"
    if any(folder.glob("*.distcp")):
        module = "torch.distributed.checkpoint.format_utils"
        command = shell("python", "-m", module, "dcp_to_torch", folder, folder / "joined.pth")
        return f"it is in parts: join them ({command}), then give {folder / 'joined.pth'}"
    names = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    patterns = ("*.index.json", "*.safetensors", "*.bin", "*.pth", "*.pt")
    candidates = [folder / name for name in names if (folder / name).is_file()]
    candidates += [
        path for pattern in patterns for path in sorted(folder.glob(pattern)) if "optim" not in path.name
    ]
    return f"give a file in it: {candidates[0]}" if candidates else "give a safetensors or .pth file"


def _kind_of(head: bytes, path: Path) -> tuple[str, str]:
    """What a file with these first bytes is, and what to do."""
    for magic, what, hint in _KINDS:
        if head.startswith(magic):
            return what, hint
    if head.lstrip()[:1] == b"<":
        return "a web page (HTML or XML), not the file it offers", f"{_AGAIN}, not the page about it"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if path.suffix == ".onnx":
        return "an ONNX graph", "give the model's PyTorch weights"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"a text file that begins with {text.strip()[:40]!r}", "give a safetensors or .pth file"
    return (
        "neither safetensors nor a PyTorch file, or it is damaged",
        f"{_AGAIN}, or give a safetensors or .pth file",
    )


def _safetensors(path: Path) -> StateDict:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except OSError:
        raise
    except Exception as error:
        cut = any(phrase in str(error) for phrase in ("incomplete metadata", "header length", "too small"))
        reason = "it is cut short" if cut else " ".join(str(error).split())[:200]
        raise ModelError(f"{path} cannot be read as safetensors: {reason}", _AGAIN) from None


def _read_index(path: Path) -> StateDict:
    """The tensors of all files that an index.json names."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        index = None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        what = "is a JSON file, and no index of weights" if index is not None else "is a text file"
        raise ModelError(f"{path} {what}", "give the weights themselves, such as model.safetensors")
    state: StateDict = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise ModelError(f"{path} names a part outside its folder: '{name}'", "mend the index")
        part = path.parent / name
        if not part.is_file():
            raise ModelError(
                f"{path} is an index of {len(set(places.values()))} files, and {part} is not there",
                "put all parts beside it, or give a file that holds all tensors",
            )
        _merge(state, _read(part, part=True).items(), path)
    missing = sorted(places.keys() - state.keys())
    if missing:
        raise ModelError(f"{path} names tensors that its parts lack: {', '.join(missing[:3])}", _AGAIN)
    return state


def _pytorch(path: Path) -> StateDict:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # by its path, torch would go by its suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise _refusal(path, error) from None
    state: StateDict = {}
    _merge(state, _tensors(content, ()), path)
    if not state and not isinstance(content, Mapping | list | tuple | argparse.Namespace):
        raise ModelError(
            f"{path} holds a value of type {type(content).__name__}, not a state dict", "give a state dict"
        )
    return state


def _refusal(path: Path, error: Exception) -> ModelError:
    """Why torch does not load a file that begins as one of its own."""
    names = _members(path)

    def holds(*endings: str) -> bool:
        return any(name.endswith(endings) for name in names)

    if holds("/constants.pkl"):
        return ModelError(
            f"{path} is a TorchScript program, which holds code",
            "save its state dict where you trust it (torch.save(torch.jit.load(FILE).state_dict(), NEW))",
        )
    if holds(".pt2", "serialized_exported_program.json", "archive_format"):
        return ModelError(f"{path} is a torch.export program, no weights file", _GIVE_STATE)
    if names and not holds("data.pkl"):
        arrays = all(name.endswith(".npy") for name in names)
        what, hint = ("a NumPy archive (.npz)", _GIVE_STATE) if arrays else ("a zip archive", _UNPACK)
        return ModelError(f"{path} is no weights file: it is {what}", hint)
    foreign = _foreign_globals(path)
    if isinstance(error, pickle.UnpicklingError) and foreign:
        return ModelError(
            f"{path} holds more than tensors ({', '.join(foreign[:3])}), and loading it could run code",
            _CONVERT,
        )
    if not names and not _is_torchs(path):
        return ModelError(
            f"{path} is a pickle that PyTorch did not write (Detectron2 and PaddlePaddle save such)", _CONVERT
        )
    return ModelError(f"{path} cannot be read: it is damaged, or no PyTorch file", _AGAIN)


def _is_torchs(path: Path) -> bool:
    """Whether a file begins as torch's older format does: with a pickled number."""
    with path.open("rb") as file:
        return file.read(64).startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[:12])


def _is_zip(path: Path) -> bool:
    """Whether a file ends as a zip archive does, whole or damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _members(path: Path) -> list[str]:
    """The names in a zip archive; empty if it is no such archive, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _foreign_globals(path: Path) -> list[str]:
    """Globals that a pickle would import, except those of tensors and plain containers; nothing is run."""
    imports: set[str] = set()
    try:
        if _members(path):
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(inside) as stream:
                    imports.update(_globals(stream))
        else:
            with path.open("rb") as stream:
                for _ in range(4):  # torch's older format: its magic, a version, the machine, the object
                    imports.update(_globals(stream))
    except Exception:  # the rest is no pickle
        pass
    torchs = ("torch ", "torch._", "torch.storage", "torch.serialization", "torch.nn.parameter ", "_codecs ")
    names = {name.replace("__builtin__", "builtins") for name in imports if not name.startswith(torchs)}
    harmless = {
        kind[1] if isinstance(kind, tuple) else f"{kind.__module__}.{kind.__qualname__}" for kind in HARMLESS
    }
    harmless |= {"collections.OrderedDict", "builtins.set"}
    return sorted({name.replace(" ", ".") for name in names} - harmless)


def _globals(stream: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif code.name == "STACK_GLOBAL" and len(texts) > 1:
            yield " ".join(texts[-2:])
        elif isinstance(argument, str) and "UNICODE" in code.name:
            texts.append(argument)


def _tensors(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts, lists and namespaces, with their names."""
    stack = [(at, value, frozenset[int]())]
    while stack:
        place, node, above = stack.pop()
        if isinstance(node, np.ndarray) and node.dtype in (np.float16, np.float32, np.float64):
            node = torch.tensor(node)
        if isinstance(node, Tensor):
            yield ".".join(place) or "tensor", node
            continue
        children: Iterable[tuple[Any, Any]] = ()
        if isinstance(node, Mapping):
            children = node.items()
        elif isinstance(node, list | tuple):
            children = enumerate(node)
        elif isinstance(node, argparse.Namespace):
            children = vars(node).items()
        if id(node) not in above:
            inside = above | {id(node)}
            stack += [((*place, str(key)), child, inside) for key, child in reversed(list(children))]


def _merge(state: StateDict, tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    for name, tensor in tensors:
        if name in state:
            raise ModelError(f"{path} holds the tensor {name} twice", "save it once, in one state dict")
        state[name] = tensor
