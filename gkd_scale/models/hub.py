"""A timm network as a folder of the Hugging Face Hub's layout, which plain timm and transformers read.

::

    config.json          architecture, ``model_args``, and how pixels are normalised
    model.safetensors    the state dict of ``timm.create_model(architecture, num_classes=0, **model_args)``

``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it, and so does
``transformers.AutoModel.from_pretrained(FOLDER)`` (its TimmWrapper).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkd_scale import files
from gkd_scale.models.spec import ModelSpec
from gkd_scale.models.tensor_files import write_tensors
from gkd_scale.types import Size

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save(folder: Path, net: nn.Module, spec: ModelSpec, image_size: Size, **more: Any) -> None:
    """Write both files of ``net``, which was built from ``spec``; ``more`` goes to the config."""
    write_tensors(folder / WEIGHTS_FILE, net.state_dict(), format="pt")
    files.write_json(folder / CONFIG_FILE, {**config(net, spec, image_size), **more})


def config(net: nn.Module, spec: ModelSpec, image_size: Size) -> dict[str, Any]:
    """What ``config.json`` says; ``image_size`` (H, W) is what pictures are resized to, bilinearly."""
    timm_net: Any = net
    model_args = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in {**timm_net._model_args, **spec.args}.items()
        if key != "num_classes" and value is not None
    }
    return {
        "architecture": spec.name.split(".")[0],
        "num_classes": 0,
        "num_features": int(timm_net.num_features),
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, *image_size],
            "fixed_input_size": False,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": 0,
            "custom_load": False,
        },
    }


def load(folder: Path) -> nn.Module:
    """The network of such a folder, as plain timm loads it, in eval mode."""
    import timm

    with torch.random.fork_rng(devices=[]):
        net: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    return net.eval().requires_grad_(False)


def licence_of(name: str) -> str | None:
    """The licence that timm states for the weights called ``name``; None if it states none."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return getattr(config, "license", None) or None
