"""Translates model names of the Hugging Face hub and torch.hub to timm's, for hints in errors."""

from __future__ import annotations

import re
from pathlib import Path

from gkd_scale.errors import nearest

HF = "hf:"
"""How the name of a transformers model begins: ``hf:FOLDER`` or ``hf:OWNER/NAME``."""

_SIZES = {"t": "tiny", "s": "small", "m": "medium", "b": "base", "l": "large", "h": "huge", "g": "giant"}
_SIZE = r"(?P<size>tiny|small|base|large|huge|giant|[tsmblhg])"

# Patterns of names without their owner, in lower case and with dashes, and how timm calls the model.
_FORMS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (rf"dinov2-(?:with-registers|reg4?)-{_SIZE}.*", "vit_{size}_patch14_reg4_dinov2.lvd142m"),
        (rf"dinov2-vit{_SIZE}14-reg.*", "vit_{size}_patch14_reg4_dinov2.lvd142m"),
        (rf"dinov2-(?:vit)?{_SIZE}(?:14)?(?:-.*)?", "vit_{size}_patch14_dinov2.lvd142m"),
        (r"dinov3-vit7b16.*", "vit_7b_patch16_dinov3.lvd1689m"),
        (rf"dinov3-vit{_SIZE}16plus.*", "vit_{size}_plus_patch16_dinov3.lvd1689m"),
        (rf"dinov3-vit{_SIZE}16.*", "vit_{size}_patch16_dinov3.lvd1689m"),
        (rf"dinov3-convnext-{_SIZE}.*", "convnext_{size}.dinov3_lvd1689m"),
        (rf"dino-vit{_SIZE}-?(?P<patch>\d+)", "vit_{size}_patch{patch}_224.dino"),
        (r"vit-mae-huge.*", "vit_huge_patch14_224.mae"),
        (rf"vit-mae-{_SIZE}", "vit_{size}_patch16_224.mae"),
        (rf"siglip-{_SIZE}-patch(?P<patch>\d+)-(?P<image>\d+)", "vit_{size}_patch{patch}_siglip_{image}"),
        (rf"clip-vit-{_SIZE}-patch(?P<p>\d+)(?:-(?P<image>\d+))?.*", "vit_{size}_patch{p}_clip_{image}"),
        (rf"c-radiov(?P<version>\d)-(?:vit-)?{_SIZE}(?:-.*)?", "vit_{size}_patch16_radio_v{version}"),
        (
            rf"swinv2-{_SIZE}-patch4-window(?P<window>\d+)-(?P<image>\d+)",
            "swinv2_{size}_window{window}_{image}",
        ),
        (rf"(?P<kind>convnext(?:v2)?)-{_SIZE}(?:-.*)?", "{kind}_{size}"),
        (r"resnet-(?P<depth>\d+)", "resnet{depth}"),
        (rf"(?:.*-)?sam-vit-{_SIZE}", "samvit_{size}_patch16"),
        (rf"vit-?{_SIZE}-?(?P<p>\d+)", "vit_{size}_patch{p}_224"),  # torchvision, Google, OpenAI
        (rf"vit-?{_SIZE}-?(?P<p>\d+)(?:@|-)(?P<image>\d+)(?:px)?.*", "vit_{size}_patch{p}_clip_{image}"),
        (rf"vit-?{_SIZE}-?(?P<p>\d+)-quickgelu", "vit_{size}_patch{p}_clip_quickgelu_224"),
    )
)

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
HINT = "names are timm's, such as vit_small_patch14_dinov2.lvd142m; 'gkd-scale students' lists some"


def suggest(name: str, models: list[str]) -> str:
    """The next step for ``name``, which is not among ``models``: timm's name of the model that is meant."""
    if re.search(r"\.(safetensors|pth|pt|bin|ckpt)$", name):
        return f"that is a file of weights: give it as --teacher-weights or --student-weights; {HINT}"
    if Path(name).is_dir():
        return (
            f"that is a folder: a run is --backbone or --student-weights, a model of transformers {HF}{name}"
        )
    guess = timm_name(name, models)
    hint = HINT
    if _HUB_ID.fullmatch(name) and not name.startswith("timm/"):
        hint = f"{HINT}; a model of transformers is {HF}{name}"
    if guess:
        return f"did you mean '{guess}'? {hint}"
    return hint if "/" in name else _alike(name, models) or hint


def _alike(name: str, models: list[str]) -> str:
    """A hint: timm's name that begins with ``name``'s letters and digits, is near to it, or holds them."""
    plain = _plain(name)
    names = sorted((n for n in models if not n.startswith("test_")), key=lambda model: (len(model), model))
    begins = [model for model in names if plain and _plain(model).startswith(plain)]
    near = "" if begins else nearest(name, models, cutoff=0.8)
    matches = begins or [model for model in names if plain and plain in _plain(model)]
    return near or (f"did you mean '{matches[0]}'? {HINT}" if matches else "")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def timm_name(name: str, models: list[str]) -> str:
    """timm's name of a model of the Hugging Face hub or torch.hub; the empty string if none is known."""
    name = re.sub(r"(?i)^(vit-\w+)/(\d+)", r"\1-\2", name)  # ViT-B/16
    last = name.rstrip("/").rsplit("/", 1)[-1]
    if last.split(".")[0] in models:  # timm/NAME, hf-hub:timm/NAME
        return last
    plain = re.sub(r"[-_. ]+", "-", last.lower())
    for pattern, form in _FORMS:
        if match := pattern.fullmatch(plain):
            parts = match.groupdict()
            size = parts.get("size", "")
            image = parts.get("image") or "224"
            candidate = form.format(**{**parts, "size": _SIZES.get(size, size), "image": image})
            if candidate.split(".")[0] in models:
                return candidate
    words = plain.replace("-", "_")
    while "_" in words:  # vit-base-patch16-224-in21k: vit_base_patch16_224
        if words in models:
            return words
        words = words.rpartition("_")[0]
    return ""
