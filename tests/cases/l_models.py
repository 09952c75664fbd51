"""Kind L, of models: names that are not timm's, and networks without dense features."""

from __future__ import annotations

import re

import timm

from tests.cases.case import Bench, case
from tests.cases.weights import save
from tests.conftest import write_images

KIND = "L. Wrong cause or no next step"


def _teacher(bench: Bench, name: str, *more: object, size: str = "32x48") -> str:
    images = write_images(bench.folder / "images", 1)
    flags = ["--teacher", name, *more, "--image-size", size, "--device", "cpu"]
    ran = bench.cli("cache-teacher", "--images", images, *flags, "--out", bench.folder / "cache")
    assert not (bench.folder / "cache").exists()
    return re.sub(r"timm [\d.]+ has", "timm has", str(ran))


@case(KIND, "`--teacher facebook/dinov2-small`")
def hub_name(bench: Bench) -> object:
    return _teacher(bench, "facebook/dinov2-small")


@case(KIND, "`--teacher google/vit-base-patch16-224-in21k`")
def hub_vit(bench: Bench) -> object:
    return _teacher(bench, "google/vit-base-patch16-224-in21k")


@case(KIND, "`--teacher timm/vit_small_patch14_dinov2.lvd142m`")
def hub_timm(bench: Bench) -> object:
    return _teacher(bench, "timm/vit_small_patch14_dinov2.lvd142m")


@case(KIND, "`--teacher some/thing-small`")
def unknown(bench: Bench) -> object:
    return _teacher(bench, "some/thing-small")


@case(KIND, "`--teacher model.safetensors`")
def file_as_name(bench: Bench) -> object:
    return _teacher(bench, "model.safetensors")


@case(KIND, "`--teacher vit_small_patch14_dinov2.lvd142M`, and other tags that timm does not have")
def tag(bench: Bench) -> object:
    other = _teacher(bench, "vit_small_patch14_dinov2.meta")
    return f"{_teacher(bench, 'vit_small_patch14_dinov2.lvd142M')}; {other}"


@case(KIND, "`--teacher` vit_b_16, ViT-B/16, ViT-L/14@336px, swin_t, mobilenet_v2, deit_tiny, dinov2")
def names_of_others(bench: Bench) -> object:
    names = ("vit_b_16", "ViT-B/16", "ViT-L/14@336px", "swin_t", "mobilenet_v2", "deit_tiny", "dinov2")
    matches = [re.search(r"did you mean '([^']+)'", _teacher(bench, name)) for name in names]
    return f"exit 2: did you mean {', '.join(each[1] if each else 'nothing' for each in matches)}?"


@case(KIND, "`--teacher ./runs/1a`, a folder")
def folder_as_name(bench: Bench) -> object:
    (bench.folder / "1a").mkdir()
    return _teacher(bench, str(bench.folder / "1a"))


@case(KIND, "a NaFlex network (RADIO) as the teacher")
def naflex(bench: Bench) -> object:
    args = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    net = timm.create_model("naflexvit_base_patch16_radio_v3", num_classes=0, **args)
    pairs = [f"{key}={value}" for key, value in args.items()]
    weights = save(bench, net.state_dict())
    return _teacher(
        bench, "naflexvit_base_patch16_radio_v3", "--teacher-weights", weights, "--teacher-args", *pairs
    )


@case(KIND, "a teacher whose tokens are of no grid that its patch size says (a hybrid)")
def hybrid(bench: Bench) -> object:
    args = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    net = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0, **args)
    pairs = [f"{key}={value}" for key, value in args.items()]
    flags = ["--teacher-weights", save(bench, net.state_dict()), "--teacher-args", *pairs]
    return _teacher(bench, "vit_tiny_r_s16_p8_224", *flags, size="128x128")
