"""Files of weights: what a file is, told by its bytes; nothing is run, nothing is half read."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from gkd_scale.errors import ModelError
from gkd_scale.models.tensor_files import index_of, read_state_dict


def _archive(**members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return data.getvalue()


def _pytorch(value: object, **options: object) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88\n"
NOT_WEIGHTS = {
    "nothing": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "an XML page": (b"\n  <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "a pointer": (_POINTER, "git lfs pull"),
    "settings": (b'{"hidden_size": 384}', "is a JSON file, and no index"),
    "broken JSON": (b'{"weight_map": ', "is a text file"),
    "a zip": (_archive(**{"model.safetensors": save({"a": torch.ones(2)})}), "it is a zip archive"),
    "an npz": (_archive(**{"a.npy": b""}), "a NumPy archive"),
    "half a zip": (_pytorch({"a": torch.ones(999)})[:700], "cut short"),
    "half a safetensors": (save({"a": torch.ones(999)})[:700], "cut short"),
    "half a header": (save({"a": torch.ones(999)})[:20], "cut short"),
    "gzip": (gzip.compress(b"x" * 99), "a gzip archive"),
    "tar": (_tar(), "a tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "HDF5"),
    "GGUF": (b"GGUF" + b"\0" * 99, "GGUF"),
    "text": ("please ask for access — été".encode(), "a text file that begins with 'please ask"),
    "bytes": (bytes(range(1, 255)), "neither safetensors nor a PyTorch file"),
    "a tensorless pickle": (_pytorch({"epoch": 3}), "holds no tensors"),
    "a number": (_pytorch(3), "type int, not a state dict"),
    "a network": (_pytorch(torch.nn.Identity()), "could run code"),
    "TorchScript": (
        _archive(**{"a/data.pkl": b"", "a/constants.pkl": b"", "a/code/x.py": b""}),
        "TorchScript",
    ),
    "a function": (pickle.dumps({"a": print}, 2), r"\(builtins\.print\), and loading it could run code"),
    "a function, newer": (pickle.dumps({"a": print}), r"\(builtins\.print\), and loading it could run code"),
    "numbers of NumPy": (_pytorch({"a": np.float64(3)}), "holds no tensors"),
    "plain values": (pickle.dumps({"a": 1}), "a pickle that PyTorch did not write"),
    "half a pickle": (_pytorch({"a": torch.ones(99)}, _use_new_zipfile_serialization=False)[:150], "damaged"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("what", NOT_WEIGHTS)
def test_what_is_no_weights_file_is_said(tmp_path: Path, what: str, suffix: str) -> None:
    content, message = NOT_WEIGHTS[what]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        read_state_dict(path)
    assert str(path) in error.value.message
    assert error.value.hint
    assert ("could run code" in error.value.message) == ("could run code" in message)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_known_by_its_bytes_not_by_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    options = {"_use_new_zipfile_serialization": False}
    for content in (
        save({"a": torch.ones(2)}),
        save({"a" * 40: torch.ones(2)}),  # a header whose length begins like JSON
        _pytorch({"a": torch.ones(2)}),
        _pytorch({"a": torch.ones(2)}, **options),
    ):
        path.write_bytes(content)
        ((_, tensor),) = read_state_dict(path).items()
        assert torch.equal(tensor, torch.ones(2))


def test_lengths_of_headers_that_look_like_other_files(tmp_path: Path) -> None:
    path = tmp_path / "w"
    for length in (ord("{"), ord("["), 0x80, 0x4B50):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        content = length.to_bytes(8, "little") + header.ljust(length).encode() + b"\0\0\x80\x3f"
        path.write_bytes(content)
        assert read_state_dict(path)["a"].item() == 1


def test_tensors_of_nested_dicts_have_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    options = argparse.Namespace(lr=0.1, shape=[1, 2])
    one = torch.ones(1)
    content = {"model": OrderedDict({"a.b": one}), "epoch": 3, "args": options, "list": [one, {"c": one}]}
    torch.save(content, path)
    assert set(read_state_dict(path)) == {"model.a.b", "list.0", "list.1.c"}
    torch.save({"a": {"b": one}, "a.b": one}, path)
    with pytest.raises(ModelError, match=r"the tensor a\.b twice"):
        read_state_dict(path)


def _shards(folder: Path) -> Path:
    parts = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for file, name in parts.items():
        save_file({name: torch.ones(2)}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, name in parts.items()}}))
    return index


def test_an_index_loads_all_its_parts(tmp_path: Path) -> None:
    index = _shards(tmp_path)
    assert set(read_state_dict(index)) == {"a", "b"}
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(index.read_bytes())
    assert set(read_state_dict(copy)) == {"a", "b"}
    assert index_of(tmp_path / "model-00001-of-00002.safetensors") == index
    assert index_of(copy) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": "model-00003-of-00003.safetensors"}, "is not there"),
        ({"b": "../other.safetensors"}, "outside its folder"),
        ({"b": "model.safetensors.index.json"}, "no weights file"),
        ({"c": "model-00002-of-00002.safetensors"}, "its parts lack: c"),
        ({"c": 3}, "no index of weights"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    index = _shards(tmp_path)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, **change}}))
    with pytest.raises(ModelError, match=message):
        read_state_dict(index)


def test_a_folder_or_an_address_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder(.|\n)*give a safetensors"):
        read_state_dict(tmp_path)
    index = _shards(tmp_path)
    with pytest.raises(ModelError, match=f"give a file in it: {index}"):
        read_state_dict(tmp_path)
    with pytest.raises(ModelError, match="download it first"):
        read_state_dict(Path("https://host/model.safetensors"))
    with pytest.raises(ModelError, match="download it first"):
        read_state_dict(Path("facebook/dinov2-small"))
