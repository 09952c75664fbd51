"""Which network: a timm architecture, its arguments, and how its pixels are normalised.

Names are timm's. Two more are ours, so that everything runs without a download: ``demo_teacher``, a
small ViT shipped with its weights, and ``demo_student``, a smaller one to be trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from gkd_scale.errors import ModelError, nearest
from gkd_scale.models import names
from gkd_scale.types import Size

Triple = tuple[float, float, float]

WEIGHTS = Path(__file__).parent / "weights"

SIZES = ("patch_size", "img_size")
"""Arguments that weights do not fix: what depends on them is resampled when weights are loaded."""


@dataclass(frozen=True)
class ModelSpec:
    """A timm architecture with its arguments; ``mean`` and ``std`` are of pixels in 0..1.

    ``origin``: the config of the transformers model that it came from, if it did.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    origin: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain YAML types; :func:`from_dict` reads them back."""
        plain = {"name": self.name, "args": self.args, "mean": list(self.mean), "std": list(self.std)}
        return plain if self.origin is None else {**plain, "origin": self.origin}

    def fixed_args(self) -> dict[str, Any]:
        """The arguments that weights fix."""
        return {key: value for key, value in self.args.items() if key not in SIZES}


def from_dict(values: Mapping[str, Any]) -> ModelSpec:
    """The inverse of :meth:`ModelSpec.as_dict`."""
    mean, std = _triple(values["mean"]), _triple(values["std"])
    return ModelSpec(values["name"], dict(values["args"]), mean, std, values.get("origin"))


def _demo_teacher() -> tuple[ModelSpec, Path | None]:
    card = yaml.safe_load((WEIGHTS / "demo_teacher.yaml").read_text())
    return from_dict({**card, "name": card["architecture"]}), WEIGHTS / "demo_teacher.safetensors"


def _demo_student() -> tuple[ModelSpec, Path | None]:
    args = {"patch_size": 8, "img_size": [96, 128], "embed_dim": 96, "depth": 4, "num_heads": 3}
    return ModelSpec("vit_tiny_patch16_224", args), None


ZOO = {"demo_teacher": _demo_teacher, "demo_student": _demo_student}


def resolve(
    name: str, args: Mapping[str, Any] | None = None, mean: Triple | None = None, std: Triple | None = None
) -> tuple[ModelSpec, Path | None]:
    """The spec of ``name`` (timm's or ours), and the weights that come with it, if any.

    ``args`` go to ``timm.create_model``; ``mean`` and ``std`` replace what timm says of the model.
    Raises ModelError for a name that timm does not know. ``hf:`` names give timm's twin (``twins.py``).
    """
    import timm

    if name.startswith(names.HF):
        from gkd_scale.models import twins

        return twins.resolve(name, args or {}, mean, std)
    if name in ZOO:
        spec, weights = ZOO[name]()
    else:
        base, _, tag = name.partition(".")
        if not timm.is_model(base):
            models = [*ZOO, *timm.list_models()]
            raise ModelError(f"timm {timm.__version__} has no model '{name}'", names.suggest(name, models))
        tags = [variant.partition(".")[2] for variant in timm.list_pretrained(f"{base}.*")]
        if tag and tag not in tags:
            raise ModelError(
                f"timm {timm.__version__} has no weights '{tag}' of '{base}'",
                nearest(tag, tags) or (f"known: {', '.join(tags)}" if tags else f"give '{base}' alone"),
            )
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        spec = ModelSpec(name, {}, _triple(config.mean), _triple(config.std)) if config else ModelSpec(name)
        weights = None
    arguments = {**spec.args, **(args or {})}
    return ModelSpec(spec.name, arguments, mean or spec.mean, std or spec.std), weights


def create(
    spec: ModelSpec,
    *,
    image_size: Size | None = None,
    pretrained: bool = False,
    optional: Mapping[str, Any] | None = None,
) -> nn.Module:
    """``timm.create_model`` without a classifier, its refusals as ModelError.

    ``image_size`` fixes the size of models that need one (position embeddings are resampled by timm
    when weights are loaded); ``optional`` arguments are left out if the model does not know them;
    ``pretrained`` downloads timm's weights.
    """
    import timm

    options = dict(optional or {})
    size = {} if image_size is None else {"img_size": tuple(image_size)}
    kwargs = {"num_classes": 0, **options, **spec.args, **size}
    kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return timm.create_model(spec.name, pretrained=pretrained, **kwargs)
        except TypeError as error:
            if size and "'img_size'" in str(error):  # a convolutional network: any size
                return create(spec, pretrained=pretrained, optional=options)
            unknown = [key for key in options if f"'{key}'" in str(error)]
            if unknown:
                rest = {key: value for key, value in options.items() if key not in unknown}
                return create(spec, image_size=image_size, pretrained=pretrained, optional=rest)
            raise ModelError(
                f"{spec.name} does not take these arguments: {kwargs}: {error}", "see timm"
            ) from None
        except Exception as error:
            if pretrained:
                raise ModelError(
                    f"the weights of {spec.name} cannot be loaded: {type(error).__name__}: {error}",
                    "give a local file (--teacher-weights or --student-weights), or check the network",
                ) from None
            raise ModelError(
                f"timm cannot build {spec.name} with {kwargs}: {str(error) or type(error).__name__}",
                "mend the arguments",
            ) from None


def _triple(values: Any) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)
