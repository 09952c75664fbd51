"""How an export is loaded in plain libraries, as code for its card."""

from __future__ import annotations

from gkd_scale.export.subject import Shapes, Subject
from gkd_scale.models import families

_TIMM = """\
```python
import timm, torch
from PIL import Image

net = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0).eval()  # or hf-hub:USER/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
x = transform(Image.open("street.jpg").convert("RGB"))[None]
with torch.no_grad():
    found = net.forward_features(x)
{tokens}
```"""
_TRANSFORMERS = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel  # timm must be installed too

processor, model = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER").eval()
net = model.timm_model
with torch.no_grad():
    found = model(**processor(Image.open("street.jpg").convert("RGB"))).last_hidden_state
{tokens}
```"""
_OWN_FAMILY = """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor, net = AutoImageProcessor.from_pretrained("FOLDER"), AutoModel.from_pretrained("FOLDER").eval()
with torch.no_grad():
    found = net(**processor(Image.open("street.jpg").convert("RGB"), return_tensors="pt")).last_hidden_state
{tokens}
```"""
_PIXELS = """\
import numpy as np
from PIL import Image

image = Image.open("street.jpg").convert("RGB"){resize}
pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255  # (1, 3, H, W), RGB 0..1"""
_ONNX = """\
```python
import onnxruntime
{pixels}
session = onnxruntime.InferenceSession("model.onnx")
{outputs} = session.run(None, {{"pixels": pixels}})
{then}
```"""
_PT2 = """\
```python
import torch
{pixels}
module = torch.export.load("model.pt2").module()
({outputs},) = module(torch.from_numpy(pixels))
{then}
```"""


def usage(form: str, subject: Subject, shapes: Shapes) -> list[str]:
    """Lines of Markdown."""
    if form in ("timm", "transformers"):
        origin = (subject.backbone.spec.origin or {}).get("model_type") if form == "transformers" else None
        forms = _TIMM if form == "timm" else _OWN_FAMILY if origin else _TRANSFORMERS
        text = forms.format(tokens=_family_tokens(subject, str(origin)) if origin else _tokens(subject))
        return [text, "", f"The processor resizes and normalises. {_sides(subject)}"]
    names = ", ".join(subject.graph().outputs)
    height, width = subject.image_size
    resize = f".resize(({width}, {height}), Image.Resampling.BILINEAR)"
    then = "classes = logits.argmax(1)  # (1, H, W)" if subject.head else "# patches: (1, N, C), row by row"
    text = (_ONNX if form == "onnx" else _PT2).format(
        pixels=_PIXELS.format(resize=resize),
        outputs=names if form != "onnx" or "," in names else f"({names},)",
        then=then,
    )
    sizes = "" if shapes is Shapes.ANY else f" Only {height}x{width} (H x W) is taken."
    about = "Normalisation is inside the model: give float32 RGB (B, 3, H, W) in 0..1, not 0..255."
    cls = ", `cls` (B, C) is the CLS token" if families.has_cls(subject.backbone.net) else ""
    inner = (
        "`logits` (B, K, H, W) are at the size of the input."
        if subject.head
        else f"`patches` (B, N, C) are after the final norm{cls}. {_sides(subject)}"
    )
    return [text, "", f"{about} {inner}{sizes}"]


def _sides(subject: Subject) -> str:
    stride = subject.backbone.stride
    return "" if stride == 1 else f"Height and width must be multiples of {stride}."


def _tokens(subject: Subject) -> str:
    """Code from ``found`` to tokens after the final norm."""
    net = subject.backbone.net
    norm = families.final_norm(net)
    line = f"found = net.{norm}(found)\n" if norm else ""
    if families.is_tokens(net):
        prefix = int(net.num_prefix_tokens)  # type: ignore[arg-type]
        cls = f"cls, patches = found[:, 0], found[:, {prefix}:]"
        return f"{line}{cls if families.has_cls(net) else f'patches = found[:, {prefix}:]'}"
    axes = "found.flatten(1, 2)" if getattr(net, "output_fmt", "NCHW") == "NHWC" else "found.flatten(2).mT"
    return f"{line}patches = {axes}  # (1, N, C), row by row"


def _family_tokens(subject: Subject, origin: str) -> str:
    """The same, of a network of transformers' family ``origin``."""
    if families.is_tokens(subject.backbone.net):
        return _tokens(subject)
    if origin == "dinov3_convnext":
        return "patches = found[:, 1:]  # (1, N, C), row by row"
    return "patches = net.layernorm(found.flatten(2).mT)  # (1, N, C), row by row"
