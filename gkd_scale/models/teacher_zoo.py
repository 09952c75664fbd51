"""A table of teachers: foundation models that timm offers, counted once and kept as ``teachers.csv``.

Any timm name and any vision model of transformers can be a teacher; these are the ones that ``gkd-scale
teachers`` lists. Reading the table imports neither torch nor timm. ``python -m gkd_scale.models.teacher_zoo``
counts it anew, on torch's meta device.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gkd_scale.models import rows
from gkd_scale.models.names import HF

TABLE = Path(__file__).parent / "teachers.csv"
IMAGE_SIDE = 224
_TENSORS = "model.safetensors"

NAMES: dict[str, tuple[str, ...]] = {
    "DINOv2": (
        *(f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large", "giant")),
        *(f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in ("small", "base", "large", "giant")),
    ),
    "DINOv3": (
        *(f"vit_{size}_patch16_dinov3.lvd1689m" for size in ("small", "base", "large", "huge_plus", "7b")),
        "vit_large_patch16_dinov3.sat493m",
        *(f"convnext_{size}.dinov3_lvd1689m" for size in ("tiny", "base", "large")),
    ),
    "SigLIP2": (
        "vit_base_patch16_siglip_512.v2_webli",
        "vit_large_patch16_siglip_512.v2_webli",
        "vit_so400m_patch16_siglip_512.v2_webli",
        "vit_giantopt_patch16_siglip_384.v2_webli",
    ),
    "CLIP": ("vit_base_patch16_clip_224.openai", "vit_large_patch14_clip_336.openai"),
    "RADIO": (
        "vit_base_patch16_radio_v3.c_radio",
        "vit_large_patch16_radio_v3.c_radio",
        "vit_huge_patch16_radio_v4.c_radio",
    ),
    "SAM": ("samvit_base_patch16.sa1b", "samvit_large_patch16.sa1b", "samvit_huge_patch16.sa1b"),
    "Perception Encoder": (
        "vit_pe_spatial_base_patch16_512.fb",
        "vit_pe_spatial_large_patch14_448.fb",
        "vit_pe_spatial_gigantic_patch14_448.fb",
    ),
    "EVA02": ("eva02_base_patch14_224.mim_in22k", "eva02_large_patch14_224.mim_m38m"),
    "AIMv2": ("aimv2_large_patch14_224.apple_pt", "aimv2_huge_patch14_224.apple_pt"),
    "MAE": ("vit_large_patch16_224.mae", "vit_huge_patch14_224.mae"),
    "I-JEPA": ("vit_huge_patch14_gap_224.in22k_ijepa",),
    "BEiT v2": ("beitv2_large_patch16_224.in1k_ft_in22k",),
    "Swin": ("swin_large_patch4_window7_224.ms_in22k",),
    "ConvNeXtV2": ("convnextv2_base.fcmae_ft_in22k_in1k", "convnextv2_huge.fcmae"),
}


@dataclass(frozen=True)
class TeacherRow:
    """One teacher on square images of ``side`` pixels.

    ``stride`` in pixels: the patch size, or the stride of the last stage; ``width`` of its tokens; ``gflops``
    of one image forward, 2 FLOP a multiply-add. ``licence`` of the weights, as timm or the model's card says
    it; empty if neither does. ``weights`` names them in a cache: a model of the hub, or a file.
    """

    name: str
    family: str
    parameters: int
    stride: int
    width: int
    side: int
    gflops: float
    licence: str
    weights: str


def read(path: Path = TABLE) -> list[TeacherRow]:
    """The table, smallest teacher first."""
    return rows.read(TeacherRow, path)


def count(name: str, family: str, side: int = IMAGE_SIDE) -> TeacherRow:
    """The row of a timm model on square images of about ``side`` pixels, counted; ModelError."""
    import timm
    import torch

    from gkd_scale.models import families
    from gkd_scale.models import spec as specs
    from gkd_scale.models.cost import cost

    with torch.device("meta"):
        stride = families.stride(specs.create(specs.resolve(name)[0]))
    side = max(1, round(side / stride)) * stride
    costs = cost(name, (side, side))
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return TeacherRow(
        name=name,
        family=family,
        parameters=costs.parameters,
        stride=stride,
        width=costs.dim,
        side=side,
        gflops=costs.gflops,
        licence=getattr(config, "license", None) or "",
        weights=config.hf_hub_id or (config.url or "").rsplit("/", 1)[-1],
    )


def write(path: Path = TABLE) -> None:
    """Count every teacher of ``NAMES`` and write the table."""
    rows.write([count(name, family) for family, names in NAMES.items() for name in names], path)


def hub_cache() -> Path:
    """The folder of Hugging Face hub models on this machine, by the hub's environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def torch_cache() -> Path:
    """The folder of files that torch and timm download by their address."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(home).expanduser() / "hub/checkpoints"


def is_here(teacher: TeacherRow) -> bool:
    """Whether the teacher's weights are in a cache of this machine."""
    if not teacher.weights:
        return False
    if "/" not in teacher.weights:
        return (torch_cache() / teacher.weights).is_file()
    return bool(_snapshots(teacher.weights, _TENSORS, "pytorch_model.bin"))


def _snapshots(name: str, *filenames: str) -> list[Path]:
    """Folders of a hub's model in the cache that hold one of ``filenames``."""
    folder = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    return [path for path in sorted(folder.glob("*")) if any((path / file).exists() for file in filenames)]


def transformers_here() -> Iterator[tuple[TeacherRow, Path]]:
    """Vision models of transformers in this machine's hub cache, with their folders; ``gflops`` is 0."""
    for folder in sorted(hub_cache().glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        rows_here = ((_describe(name, snapshot), snapshot) for snapshot in _snapshots(name, _TENSORS))
        yield from islice(((row, snapshot) for row, snapshot in rows_here if row is not None), 1)


def _describe(name: str, snapshot: Path) -> TeacherRow | None:
    """A row for a folder of transformers; None if it has no patches or stages that read images."""
    try:
        return _row(name, snapshot, json.loads((snapshot / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, KeyError, IndexError, MemoryError):
        return None


def _row(name: str, snapshot: Path, raw: dict[str, Any]) -> TeacherRow | None:
    config = raw.get("vision_config", raw)
    widths = config.get("hidden_sizes") or [config.get("hidden_size", 0)]
    stride = config.get("patch_size", 4 if "hidden_sizes" in config else 0)
    if "model_type" not in raw or not isinstance(stride, int) or not stride or "auto_map" in raw:
        return None
    stride *= 2 ** (len(config.get("depths", [0])) - 1)  # each stage halves the map
    side = config.get("image_size", IMAGE_SIDE)
    return TeacherRow(
        name=f"{HF}{name}",
        family=str(raw["model_type"]),
        parameters=_parameters(snapshot / _TENSORS),
        stride=stride,
        width=int(widths[-1]),
        side=side if isinstance(side, int) else IMAGE_SIDE,
        gflops=0.0,
        licence=_licence(snapshot),
        weights=name,
    )


def _parameters(file: Path) -> int:
    """How many numbers the tensors of a safetensors file hold, from its header; ValueError, OSError."""
    with file.open("rb") as stream:
        length = stream.read(8)
        if len(length) < 8:
            raise ValueError(f"{file} has no header")
        header = json.loads(stream.read(struct.unpack("<Q", length)[0]))
    return sum(math.prod(value["shape"]) for key, value in header.items() if key != "__metadata__")


def _licence(snapshot: Path) -> str:
    """The licence in the first lines of a model's card; empty if there is none."""
    card = snapshot / "README.md"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:40] if card.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), "")


if __name__ == "__main__":
    write()
