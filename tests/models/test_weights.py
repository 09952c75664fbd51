"""Weights from files: what is read, what is refused, and that nothing is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from gkd_scale.errors import ModelError
from gkd_scale.models import weights
from tests.conftest import TINY


def tiny(**extra: object) -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, **extra})


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "teacher"])
def test_files_of_other_projects_are_unwrapped(tmp_path: Path, wrap: str) -> None:
    source = tiny()
    state = source.state_dict()
    content: object = {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "module": {f"module.{key}": value for key, value in state.items()},
        "teacher": {"teacher": {f"backbone.{key}": value for key, value in state.items()}},
    }[wrap]
    path = tmp_path / "w.pth"
    torch.save(content, path)
    target = tiny()
    weights.load_into(target, weights.read_state_dict(path), path)
    assert weights.fingerprint(target) == weights.fingerprint(source)


def test_patch_and_position_embeddings_are_resampled(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny().state_dict(), path)
    target = tiny(patch_size=8, img_size=(32, 48))
    weights.load_into(target, weights.read_state_dict(path), path)
    assert target.patch_embed.grid_size == (4, 6)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch should-not-be-there",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, path)
    with pytest.raises(ModelError, match="could run code"):
        weights.read_state_dict(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError):
        weights.read_state_dict(path)
    assert not (tmp_path / "should-not-be-there").exists()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ModelError, match="no weights file"):
        weights.read_state_dict(path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        weights.read_state_dict(path)
    save_file({"blocks.0.norm1.weight": torch.ones(48)}, path)
    with pytest.raises(ModelError, match="lacks"):
        weights.load_into(tiny(), weights.read_state_dict(path), path)
    save_file(tiny(embed_dim=96).state_dict(), path)
    with pytest.raises(ModelError, match="does not fit"):
        weights.load_into(tiny(), weights.read_state_dict(path), path)


def test_fingerprints_tell_weights_apart() -> None:
    net = tiny()
    before = weights.fingerprint(net)
    with torch.no_grad():
        net.norm.bias[0] += 1e-6
    assert weights.fingerprint(net) != before
