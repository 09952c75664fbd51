"""A finished stage-2 run as files, and back.

``backbone.safetensors`` + ``backbone.yaml`` (as stage 1 writes them), ``head.safetensors``, and
``segmenter.yaml``, which says which head, which classes and which image size. The card is written
last: a folder that has it is complete.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gkd_scale import files
from gkd_scale.commands import shell
from gkd_scale.errors import RunError
from gkd_scale.models import backbone as backbones
from gkd_scale.models.backbone import load_backbone
from gkd_scale.models.tensor_files import read_state_dict, write_tensors
from gkd_scale.segment.heads.base import SegHead
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import Windows
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.text import nfc
from gkd_scale.types import Size

HEAD_FILE = "head.safetensors"
CARD_FILE = "segmenter.yaml"
_FORMAT = 1


@dataclass(frozen=True)
class Card:
    """A segmenter's facts without its weights. ``miou`` is 0..100, in-domain, at ``step``.

    ``windows`` says how it was validated; evaluation does the same by default. ``absent`` names classes
    that no training label holds: they do not count in its mIoU on other domains.
    """

    head: str
    head_args: dict[str, Any]
    classes: list[str]
    palette: list[tuple[int, int, int]]
    image_size: Size
    adapt: str
    step: int
    miou: float
    windows: Windows | None = None
    absent: list[str] = field(default_factory=list)


def save_head(folder: Path, head: SegHead) -> None:
    """Write ``head.safetensors``: the head's state dict in float32 (integers as they are)."""
    state = head.state_dict().items()
    write_tensors(folder / HEAD_FILE, {k: v.float() if v.is_floating_point() else v for k, v in state})


def save_card(folder: Path, card: Card) -> None:
    """Write ``segmenter.yaml``, which makes the run complete."""
    values = asdict(card)
    values.update(image_size=list(card.image_size), palette=[list(colour) for colour in card.palette])
    if card.windows is not None:
        values["windows"] = {name: list(size) for name, size in card.windows._asdict().items()}
    files.write_text(
        folder / CARD_FILE,
        yaml.safe_dump({"format": _FORMAT, **values}, sort_keys=False, default_flow_style=None),
    )


def load_card(run: Path) -> Card:
    """The card of a finished stage-2 run; RunError if ``run`` is none."""
    path = run / CARD_FILE
    if not path.is_file():
        what = "holds no finished stage-2 run" if run.is_dir() else "does not exist"
        raise RunError(
            f"{run} {what} (no {CARD_FILE})",
            f"train it with: {shell('deepspeed', 'launchers/stage2.py', '--out', run)}",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            raise ValueError(f"the format is not {_FORMAT}")
        values["image_size"] = tuple(values["image_size"])
        if values.get("windows") is not None:
            values["windows"] = Windows(**{name: tuple(size) for name, size in values["windows"].items()})
        values["palette"] = [tuple(colour) for colour in values["palette"]]
        for names in ("classes", "absent"):
            values[names] = [nfc(name) for name in values.get(names, ())]
        return Card(**values)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", "run stage 2 again: it exports anew") from None


def fingerprint(run: Path) -> str:
    """SHA-256 over the files of a finished run's segmenter; RunError if ``run`` is none."""
    load_card(run)
    names = (CARD_FILE, HEAD_FILE, backbones.CARD_FILE, backbones.WEIGHTS_FILE)
    lines = "".join(f"{name} {files.sha256_file(run / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_segmenter(run: Path) -> tuple[Segmenter, Card]:
    """The segmenter of a finished run, frozen and in eval mode, and its card; RunError or ModelError."""
    card = load_card(run)
    backbone = load_backbone(run, None)
    head = build_head(card.head, backbone.channels, len(card.classes), card.head_args)
    try:
        head.load_state_dict(read_state_dict(run / HEAD_FILE))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"{run / HEAD_FILE} does not fit {run / CARD_FILE}: {reason}", "run stage 2 again"
        ) from None
    return Segmenter(backbone, head).eval(), card
