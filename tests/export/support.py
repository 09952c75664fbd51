"""Finished runs of tiny networks, and other libraries in processes that never import gkd_scale."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gkd_scale import scenes
from gkd_scale.export.subject import open_subject
from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.segment import export
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import Size
from tests.conftest import environment
from tests.models.families import FAMILIES
from tests.segment.support import CLASSES, COLOURS

HEAD_ARGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "fpn": {"width": 32},
    "mask2former": {"size": "small", "encoder_layers": 1, "decoder_layers": 1, "queries": 8},
}

LOADERS = {
    "timm": """
import timm
net = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
given = net.pretrained_cfg
mean, std = (torch.tensor(given[key]).view(3, 1, 1) for key in ("mean", "std"))
with torch.no_grad():
    found = net.forward_features((torch.from_numpy(pixels) - mean) / std)
""",
    "transformers": """
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
images = [Image.fromarray((255 * each).round().astype(np.uint8).transpose(1, 2, 0)) for each in pixels]
net = model.timm_model
with torch.no_grad():
    found = model(**processor(images)).last_hidden_state
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
outputs = dict(zip([each.name for each in session.get_outputs()], session.run(None, {"pixels": pixels})))
""",
    "torch-export": """
found = torch.export.load(f"{folder}/model.pt2").module()(torch.from_numpy(pixels))
outputs = {"logits" if found[0].ndim == 4 else ("patches", "cls")[i]: v.detach().numpy()
           for i, v in enumerate(found)}
""",
}
"""What a user writes, with ``folder`` and ``pixels`` (B, 3, H, W) float32 0..1 given."""

_AROUND = """
import sys
import numpy as np
{torch}
folder, *places = sys.argv[1:]
for place in places:
    pixels = np.load(place)
{load}
    np.savez(place + ".npz", **outputs)
assert not [name for name in sys.modules if name.partition(".")[0] == "gkd_scale"]
"""
_FEATURES = """
with torch.no_grad():
{code}
outputs = {{"patches": patches.numpy()}}
if "cls" in dir():
    outputs["cls"] = cls.numpy()
"""


def make_run(folder: Path, family: str = "vit", head: str | None = None, size: Size | None = None) -> Path:
    """A finished run of random weights: of stage 1 without ``head``, else of stage 2, its logits apart."""
    each = FAMILIES[family]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        backbone = load_backbone(None, each.name, each.args)
        _unsettle(backbone)
        backbone.save(folder, image_size=list(size or each.size))
        if head is None:
            return folder
        module = build_head(head, backbone.channels, len(CLASSES), HEAD_ARGS[head])
        segmenter = Segmenter(backbone, module, frozen=True)
        (_learn if head == "mask2former" else _sharpen)(segmenter, size or each.size)
        export.save_head(folder, module)
    palette = [(int(r), int(g), int(b)) for r, g, b in COLOURS]
    card = export.Card(head, HEAD_ARGS[head], list(CLASSES), palette, size or each.size, "frozen", 1, 50.0)
    export.save_card(folder, card)
    return folder


def _unsettle(backbone: Backbone) -> None:
    """Norms and their statistics as training leaves them: not ones and zeros."""
    for name, value in backbone.net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1 and "gamma" not in name:
            value.add_(0.1 * torch.rand_like(value))


@torch.enable_grad()
def _learn(segmenter: Segmenter, size: Size) -> None:
    """Train the head on two scenes: random queries would all give the same class."""
    pairs = [scenes.render("source", index, size) for index in range(2)]
    pixels = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([label for _, label in pairs]) % len(CLASSES)).long()
    optimizer = torch.optim.AdamW(segmenter.head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        segmenter.train()(SegBatch(pixels, labels))["loss"].backward()
        optimizer.step()


def _sharpen(segmenter: Segmenter, size: Size) -> None:
    """Random classes that differ from pixel to pixel: logits of mean 0 and deviation 1 for every class."""
    segmenter.eval()
    pixels = torch.from_numpy(np.stack([scenes.render("source", index, size)[0] for index in range(2)]))
    for name, value in segmenter.head.named_parameters():
        if value.ndim > 1 and name.startswith("classifier"):
            value.normal_()
    bias = dict(segmenter.head.named_parameters()).get("classifier.bias")
    bias = (
        segmenter.head.get_parameter("classifiers.0.bias") if hasattr(segmenter.head, "classifiers") else bias
    )
    if bias is not None:
        logits = segmenter.logits(pixels.permute(0, 3, 1, 2))
        for name, value in segmenter.head.named_parameters():
            if value.ndim > 1 and name.startswith("classifier"):
                value.div_(logits.std((0, 2, 3))[:, None, None, None])
        bias.sub_(bias)
        bias.sub_(segmenter.logits(pixels.permute(0, 3, 1, 2)).mean((0, 2, 3)))


def code_of_card(folder: Path) -> str:
    """The lines of a card that turn ``found`` into ``patches`` and ``cls``."""
    block = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    lines = block.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip().startswith("found =")) + 1
    return "\n".join(lines[start:]).strip()


def plain(
    folder: Path, form: str, pixels: Sequence[npt.NDArray[np.float32]], scratch: Path
) -> list[dict[str, Any]]:
    """The outputs of an export for each batch, in its own library, in one process without gkd_scale."""
    places = [scratch / f"pixels-{number}.npy" for number in range(len(pixels))]
    for place, each in zip(places, pixels, strict=True):
        np.save(place, each)
    code = LOADERS[form]
    if form in ("timm", "transformers"):
        code += _FEATURES.format(code=indent(code_of_card(folder), "    "))
    text = _AROUND.format(load=indent(code, "    "), torch="" if form == "onnx" else "import torch")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, folder.resolve(), *places],
        cwd=scratch,
        env={key: value for key, value in environment().items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    arrays = []
    for place in places:
        with np.load(f"{place}.npz") as outputs:
            arrays.append({name: outputs[name] for name in outputs.files})
    return arrays


def reference(run: Path, pixels: npt.NDArray[np.uint8], head: bool) -> dict[str, Any]:
    """What the run gives in PyTorch for (B, 3, H, W) uint8."""
    features = open_subject(run, head=head).reference(torch.from_numpy(pixels))
    return {name: value.numpy() for name, value in features.items()}
