from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gkd_scale.engine import checkpoint


def test_a_fork_has_the_same_tensors_and_another_identity(tmp_path: Path) -> None:
    meta = {"step": 7, "optimizer_step": 7, "identity": {"seed": 0, "optim": {"lr": 1.0}}}
    source = checkpoint.path(tmp_path, 7)
    save_file({"param/w": torch.arange(3.0)}, source, {"gkd_scale": json.dumps(meta)})
    folder = tmp_path / "other"
    folder.mkdir()
    checkpoint.path(folder, 9).write_bytes(b"what the trial had before")
    checkpoint.fork(source, folder, {"optim": {"lr": 2.0}})
    assert checkpoint.steps(folder) == [7]
    with safe_open(str(checkpoint.path(folder, 7)), framework="pt") as reader:
        assert json.loads(reader.metadata()["gkd_scale"]) == {
            **meta,
            "identity": {"seed": 0, "optim": {"lr": 2.0}},
        }
        assert torch.equal(reader.get_tensor("param/w"), torch.arange(3.0))
