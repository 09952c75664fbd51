"""Models of transformers in a folder or on the hub: what they are, whether we load them, their weights.

A reference is ``hf:FOLDER`` or ``hf:OWNER/NAME``. A folder is read without a network. A name of the hub is
looked up in the cache of this machine first, and downloaded only if it is not there (never with
``HF_HUB_OFFLINE=1``). What could run code is refused: remote code (``auto_map``) and pickled weights.
"""

from __future__ import annotations

import inspect
import logging as python_logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
)
from transformers.utils import cached_file, logging

from gkd_scale.commands import shell
from gkd_scale.errors import ModelError, nearest, one_line
from gkd_scale.models import belonging
from gkd_scale.models.names import HF
from gkd_scale.models.spec import Triple
from gkd_scale.ranges import DEVIATION, MEAN, Range

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FORMS = "give hf:FOLDER (config.json, preprocessor_config.json, model.safetensors) or hf:OWNER/NAME"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Checkpoint:
    """A model of transformers: where it is, and the config of its vision tower.

    ``place`` is a folder or a name of the hub; ``config`` is of a model that takes pixels.
    """

    place: str
    local: bool
    config: Any

    @property
    def name(self) -> str:
        """The reference for a fingerprint; of a folder only the model type, because folders move."""
        return f"{HF}{self.config.model_type if self.local else self.place}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars, remarks and warnings of transformers; errors are raised all the same."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = python_logging.getLogger("huggingface_hub")
    level = hub.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.setLevel(python_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            logging.enable_progress_bar()


def open_checkpoint(reference: str, folder: Path | None = None, *, config_only: bool = False) -> Checkpoint:
    """The checkpoint that ``reference`` names, or that of its name in ``folder``; ModelError.

    ``config_only``: its weights need not be there.
    """
    place, local = _place(reference, folder)
    raw = _raw_config(place, local)
    _refuse_foreign(place, raw)
    if not config_only:
        _refuse_unsafe(place, local)
    try:
        config: Any = _try(
            lambda here: AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=here),
            local,
        )
    except Exception as error:
        raise ModelError(
            f"{place}/{CONFIG} cannot be used: {one_line(error)[:200]}", "mend config.json"
        ) from None
    tower = getattr(config, "vision_config", None)
    config = config if tower is None else tower
    _require_vision(place, config)
    return Checkpoint(place, local, config)


def _place(reference: str, folder: Path | None) -> tuple[str, bool]:
    name = reference.removeprefix(HF)
    if folder is not None:
        if folder.is_file() and folder.name not in WEIGHTS:
            raise ModelError(
                f"{folder} is not what transformers loads ({' or '.join(WEIGHTS)})",
                f"give the folder: {folder.parent}",
            )
        model_folder = folder.parent if folder.is_file() else folder
        if not model_folder.is_dir():
            raise ModelError(f"there is no folder {folder}", _FORMS)
        return str(model_folder), True
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{path} is a file, not a folder of transformers", f"give {HF}{path.parent}")
    if path.is_dir():
        return str(path), True
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        is_model_type = name in transformers.CONFIG_MAPPING
        hint = "a cache that was made from a folder says only the kind: give the folder as --teacher-weights"
        raise ModelError(f"there is no folder '{name}'", hint if is_model_type else _FORMS)
    return name, False


def _raw_config(place: str, local: bool) -> dict[str, Any]:
    """config.json as it is stored, without building anything from it."""
    if local and not (Path(place) / CONFIG).is_file():
        raise ModelError(f"{place} holds no {CONFIG}: it is no folder of transformers", _FORMS)
    try:
        configs = _try(lambda here: PreTrainedConfig.get_config_dict(place, local_files_only=here), local)
        return dict(configs[0])
    except Exception as error:
        raise _unreachable(place, local, error) from None


def _try(load: Callable[[bool], _T], local: bool) -> _T:
    """``load(local_files_only)``: from this machine, and from the hub only if it is not there."""
    with quiet():
        try:
            return load(True)
        except OSError:
            if local:
                raise
            return load(False)


def _unreachable(place: str, local: bool, error: Exception) -> ModelError:
    reason = one_line(error)[:200]
    if local:
        return ModelError(f"{place}/{CONFIG} cannot be read: {reason}", "mend it, or download it again")
    if "gated" in str(error).lower() or "401" in str(error):
        return ModelError(
            f"the hub does not give '{place}' to everybody, or it has no such model",
            "accept its terms on its page and run 'hf auth login', or check the name",
        )
    if "connect" in str(error) or "offline" in str(error).lower():
        return ModelError(
            f"'{place}' is no folder and not in this machine's cache, and the hub cannot be reached",
            f"download it on a machine with a network ({shell('hf', 'download', place)}), or give hf:FOLDER",
        )
    return ModelError(f"'{place}' cannot be loaded from the hub: {reason}", "check the name")


_TIMMS = ("timm_wrapper", "timm_backbone")


def _refuse_foreign(place: str, raw: dict[str, Any]) -> None:
    """ModelError for a config that is not transformers' own: code of its own, timm's, quantised, unknown."""
    if raw.get("auto_map"):
        names = raw["auto_map"]
        classes = ", ".join(sorted(map(str, names.values()))) if isinstance(names, dict) else names
        raise ModelError(
            f"{place} brings code of its own ({classes}), and gkd-scale runs no code from model folders",
            "if transformers knows this model without it, delete auto_map from a copy of its config.json",
        )
    kind = raw.get("model_type")
    name = raw.get("architecture") or raw.get("backbone")
    if kind in _TIMMS or (kind is None and "architecture" in raw):
        raise ModelError(
            f"{place} holds a timm model, {name}",
            f"give timm's name and the file: --teacher {name} --teacher-weights {place}/{WEIGHTS[0]}",
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        what = "no model_type" if kind is None else f"model_type '{kind}'"
        near = nearest(str(kind), transformers.CONFIG_MAPPING)
        raise ModelError(
            f"{place}/{CONFIG} names {what}, which transformers {transformers.__version__} does not know",
            near or "a newer transformers may know it",
        )
    if raw.get("quantization_config"):
        raise ModelError(f"{place} holds quantised weights", "give float weights: features must be exact")


def _refuse_unsafe(place: str, local: bool) -> None:
    """ModelError unless there are safetensors; says what there is instead."""
    if _has(place, local, WEIGHTS):
        if _has(place, local, ("adapter_config.json",)):
            raise ModelError(
                f"{place} holds adapters beside the weights", "merge them and save the model anew"
            )
        return
    pickles = _has(place, local, PICKLES)
    if pickles:
        raise ModelError(
            f"{place} holds pickled weights only ({pickles}), and loading a pickle can run code",
            f"if you trust it: AutoModel.from_pretrained({place!r}).save_pretrained(FOLDER), then hf:FOLDER",
        )
    raise ModelError(f"{place} holds no weights ({' or '.join(WEIGHTS)})", _FORMS)


def _has(place: str, local: bool, names: tuple[str, ...]) -> str:
    """The first of ``names`` that is there; the empty string if none is."""
    there = (name for name in names if ((Path(place) / name).is_file() if local else _lookup(place, name)))
    return next(there, "")


def weights_file(checkpoint: Checkpoint) -> Path:
    """The safetensors file, or the index of several."""
    name = _has(checkpoint.place, checkpoint.local, WEIGHTS)
    if checkpoint.local:
        return Path(checkpoint.place) / name
    return Path(str(_lookup(checkpoint.place, name)))


def _lookup(place: str, name: str) -> str | None:
    """The path of a hub model's file in the cache, downloaded if needed; ModelError if the hub cannot say."""

    def find(here: bool) -> str | None:
        path = cached_file(place, name, local_files_only=here, _raise_exceptions_for_missing_entries=here)
        if here and path is None:
            raise OSError
        return path

    try:
        return _try(find, local=False)
    except OSError as error:
        raise _unreachable(place, False, error) from None


def _require_vision(place: str, config: Any) -> None:
    """ModelError unless AutoModel makes a network that takes pixels from ``config``."""
    if type(config) not in MODEL_MAPPING:
        raise ModelError(
            f"{place}: AutoModel knows no network for '{config.model_type}'", "give the backbone itself"
        )
    net_class: Any = MODEL_MAPPING[type(config)]
    net_class = net_class[0] if isinstance(net_class, tuple) else net_class
    if net_class.main_input_name != "pixel_values":
        raise ModelError(
            f"{place} holds a {config.model_type} model, which reads {net_class.main_input_name}, not images",
            "give a vision model, or a folder that holds a vision tower too",
        )


def load_net(checkpoint: Checkpoint) -> nn.Module:
    """The vision tower in float32, in eval mode; ModelError unless the file holds exactly its tensors."""
    config, place = checkpoint.config, checkpoint.place
    config.tie_last_hidden_states = False  # the last hidden state stays what leaves the last block
    try:
        with torch.random.fork_rng(devices=[]):
            net, info = _try(
                lambda here: AutoModel.from_pretrained(
                    place,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=here,
                    output_loading_info=True,
                ),
                checkpoint.local,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"the weights of {place} do not load: {one_line(error)[:200]}",
            "check that config.json and the weights are of one model",
        ) from None
    drop_pooler(net)
    _require_whole(net, place, info)
    return net.eval()


def drop_pooler(net: nn.Module) -> None:
    """Remove a pooler with a linear layer, which no dense feature depends on and many files lack."""
    pooler = getattr(net, "pooler", None)
    if isinstance(pooler, nn.Module) and any(isinstance(module, nn.Linear) for module in pooler.modules()):
        net.pooler = None  # type: ignore[assignment]


def _require_whole(net: nn.Module, place: str, info: dict[str, Any]) -> None:
    """ModelError if tensors are missing, not finite, or if the file holds more of the tower's parts."""
    model_state = dict(net.state_dict())
    missing = sorted(name for name in info["missing_keys"] if name in model_state)
    if missing:
        raise ModelError(
            f"{place} lacks {len(missing)} tensors of {type(net).__name__}: {belonging.brief(missing)}",
            "check that config.json and the weights are of one model",
        )
    tops = {name for name, _ in net.named_children()}
    prefixes = ("", f"{net.base_model_prefix}.", "vision_model.", "vision_encoder.")
    extra = sorted(
        name
        for name in info["unexpected_keys"]
        if any(name.startswith(p) and name.removeprefix(p).split(".")[0] in tops for p in prefixes)
        and not belonging.is_buffer(name)
        and "pooler" not in name
    )
    if extra:
        raise ModelError(
            f"{place} holds tensors that its config.json has no place for: {belonging.brief(extra)}",
            "check that config.json and the weights are of one model",
        )
    belonging.require_plausible(model_state, model_state, place)


def pixel_stats(checkpoint: Checkpoint, mean: Triple | None, std: Triple | None) -> tuple[Triple, Triple]:
    """``mean`` and ``std``; what is None is that of :func:`normalisation`, ModelError."""
    if mean is not None and std is not None:
        return mean, std
    own_mean, own_std = normalisation(checkpoint)
    return mean or own_mean, std or own_std


def normalisation(checkpoint: Checkpoint) -> tuple[Triple, Triple]:
    """Mean and standard deviation of pixels in 0..1, as preprocessor_config.json says; ModelError."""
    place = checkpoint.place
    load = partial(AutoImageProcessor.from_pretrained, place, trust_remote_code=False)
    try:
        processor: Any = _try(lambda here: load(local_files_only=here), checkpoint.local)
    except Exception as error:
        exists = checkpoint.local and (Path(place) / "preprocessor_config.json").is_file()
        what = f"cannot be used: {one_line(error)[:200]}" if exists else "is not there"
        raise ModelError(
            f"{place}: preprocessor_config.json, which says mean and std of the pixels, {what}",
            "put the model's own beside config.json, or give --mean R G B --std R G B",
        ) from None
    file = f"{place}/preprocessor_config.json"
    for flag, what in _OTHER_PIXELS.items():
        if getattr(processor, flag, None):
            raise ModelError(f"{file} says {flag}: {what}, which gkd-scale does not do", _OWN_PIXELS)
    factor = processor.rescale_factor if processor.do_rescale else 1
    if not _is_number(factor) or factor not in _FACTOR:
        raise _wrong_pixels(file, "rescale_factor", factor, f"a number {_FACTOR.text()}")
    scale = round(255 * float(factor), 6) if processor.do_rescale else 255.0
    if not processor.do_normalize:
        return (0.0, 0.0, 0.0), (1 / scale, 1 / scale, 1 / scale)
    return _three(file, "image_mean", processor, scale), _three(file, "image_std", processor, scale)


_OTHER_PIXELS = {
    "do_flip_channel_order": "channels in the order blue, green, red",
    "rescale_offset": "pixels from -1",
}
_OWN_PIXELS = (
    "choose another teacher, or load the weights by timm's name: --teacher NAME --teacher-weights FILE"
)
_FACTOR = Range(gt=0)


def _wrong_pixels(file: str, name: str, value: Any, must: str) -> ModelError:
    return ModelError(f"{file} has {name} {value!r}: it must be {must}", "mend it, or give --mean and --std")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _three(file: str, name: str, processor: Any, scale: float) -> Triple:
    """The processor's ``name``, one number a channel or one for all, divided by ``scale``; ModelError."""
    value = getattr(processor, name, None)
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise _wrong_pixels(file, name, value, "three numbers, or one for all channels")
    bounds = MEAN if name == "image_mean" else DEVIATION
    red, green, blue = (float(number) / scale for number in values)
    if not all(number in bounds for number in (red, green, blue)):
        raise _wrong_pixels(file, name, value, f"{bounds.text()} for pixels in 0..1")
    return red, green, blue


def accepts(net: nn.Module, argument: str) -> bool:
    """Whether the network's forward takes ``argument``."""
    return argument in inspect.signature(net.forward).parameters
