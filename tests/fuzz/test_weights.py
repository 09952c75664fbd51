"""Mutated state dicts and files: the right weights, or one of our errors, and nothing else."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import timm
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from gkd_scale.errors import GkdError
from gkd_scale.models import weights
from gkd_scale.models.tensor_files import StateDict, read_state_dict

_ARGS = {"patch_size": 8, "img_size": 16, "embed_dim": 12, "depth": 2, "num_heads": 3, "init_values": 1e-5}
_PHASES = (Phase.explicit, Phase.generate)  # the first failure says enough, and shrinking is slow
_FEW = settings(max_examples=60, phases=_PHASES)
_MANY = settings(
    max_examples=150, phases=_PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def net() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **_ARGS)


@functools.cache
def source() -> tuple[StateDict, str]:
    """Tensors of which none is equal to another or constant, and their fingerprint."""
    module = net()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).half())
    return dict(module.state_dict()), weights.fingerprint(module)


NAMES = st.sampled_from(sorted(source()[0]))
SEGMENTS = st.lists(st.sampled_from(("model", "module", "teacher", "student", "ema", "_orig_mod", "0", "")))

# Changes after which the weights are no longer what they were: only a refusal is right.
DAMAGE = {
    "int8": lambda value: value.to(torch.int8),
    "bool": lambda value: value.bool(),
    "float8": lambda value: value.to(torch.float8_e5m2),
    "complex": lambda value: value.to(torch.complex64),
    "NaN": lambda value: torch.full_like(value, torch.nan),
    "infinite": lambda value: value.double() * 1e300,
    "empty": lambda value: value[:0],
    "scalar": lambda value: value.flatten()[0],
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
    "longer": lambda value: torch.cat([value, value]),
    "another rank": lambda value: value.expand(2, 2, *value.shape),
}
# Changes of form alone: the same weights, or a refusal.
FORMS = {
    "half": lambda value: value.half(),
    "double": lambda value: value.double(),
    "not contiguous": lambda value: torch.stack([value, value], -1)[..., 0],
    "a parameter": lambda value: torch.nn.Parameter(value),
    "flat": lambda value: value.flatten(),
    "as it was": lambda value: value,
}
# Tensors beside those of the network, and whether it may be loaded without them.
BESIDE = {
    "head.weight": True,
    "mask_token": True,
    "bbox_head.fc.weight": True,
    "contrastive_mlp.0.weight": True,
    "decoder.blocks.0.norm1.weight": True,
    "norm.num_batches_tracked": True,
    "blocks.2.norm1.weight": False,
    "blocks.0.attn.q_norm.weight": False,
    "blocks.0.attn.qkv.weight_scale": False,
    "blocks.1.attn.qkv.lora_A.weight": False,
    "reg_token": False,
    "dist_token": False,
    "norm_pre.weight": False,
    "something.weight": False,
}


def load(state: StateDict) -> str | None:
    """The fingerprint of the network with ``state`` in it; None where it is refused."""
    target = net()
    try:
        weights.load_into(target, state, "w.pth")
    except GkdError as error:
        assert "w.pth" in error.message
        assert error.hint
        return None
    return weights.fingerprint(target)


@_FEW
@given(NAMES, st.sampled_from(sorted(DAMAGE)), SEGMENTS)
def test_a_spoiled_tensor_is_refused(name: str, change: str, segments: list[str]) -> None:
    state, _ = source()
    prefix = "".join(f"{segment}." for segment in segments)
    content = {**state, name: DAMAGE[change](state[name])}
    assert load({prefix + key: value for key, value in content.items()}) is None
    del content[name]
    assert load({prefix + key: value for key, value in content.items()}) is None


@_FEW
@given(NAMES, st.sampled_from(sorted(FORMS)), SEGMENTS)
def test_another_form_is_the_same_or_refused(name: str, change: str, segments: list[str]) -> None:
    state, right = source()
    prefix = "".join(f"{segment}." for segment in segments)
    content = {**state, name: FORMS[change](state[name])}
    digest = load({prefix + key: value for key, value in content.items()})
    assert digest == right or (digest is None and change == "flat")


@_FEW
@given(NAMES, SEGMENTS, st.sampled_from((0.0, 1e-4)))
def test_what_no_training_leaves_is_refused(name: str, segments: list[str], factor: float) -> None:
    """One matrix of zeros, or differences from other weights in place of all."""
    state, _ = source()
    prefix = "".join(f"{segment}." for segment in segments)
    content = {key: value * (factor if factor or key == name else 1.0) for key, value in state.items()}
    digest = load({prefix + key: value for key, value in content.items()})
    if factor or (state[name].ndim > 1 and name.endswith("weight")):
        assert digest is None


@_FEW
@given(st.sampled_from(("delta", "diff", "mu", "nu", "fisher", "momentum_buffer")), SEGMENTS)
def test_what_was_learned_about_weights_is_refused(word: str, segments: list[str]) -> None:
    prefix = "".join(f"{segment}." for segment in [*segments, word])
    assert load({prefix + key: value for key, value in source()[0].items()}) is None


@_FEW
@given(NAMES, st.sampled_from(("", "x.", "blocks.", "norm.", "blocks.0.0.", "embeddings.patch_embeddings.")))
def test_a_renamed_tensor_is_refused(name: str, prefix: str) -> None:
    state, _ = source()
    assert load({(prefix or "new_") + n if n == name else n: value for n, value in state.items()}) is None


@_FEW
@given(NAMES, NAMES)
def test_swapped_tensors_are_refused_where_their_shapes_say_it(one: str, other: str) -> None:
    state, right = source()
    swap = {**state, one: state[other], other: state[one]}
    if state[one].shape != state[other].shape:
        assert load(swap) is None
    elif one == other:
        assert load(swap) == right


@_FEW
@given(st.sampled_from(sorted(BESIDE)), SEGMENTS)
def test_what_lies_beside_is_dropped_only_where_it_may(name: str, segments: list[str]) -> None:
    state, right = source()
    prefix = "".join(f"{segment}." for segment in segments)
    digest = load({prefix + key: value for key, value in {**state, name: torch.ones(12)}.items()})
    assert digest == (right if BESIDE[name] else None)


@functools.cache
def files() -> dict[str, bytes]:
    """A file of each format."""
    state, _ = source()
    contents = {"safetensors": save({name: value.contiguous() for name, value in state.items()})}
    for name, options in (("zip", {}), ("pickle", {"_use_new_zipfile_serialization": False})):
        data = io.BytesIO()
        torch.save({"model": state, "epoch": 3}, data, **options)
        contents[name] = data.getvalue()
    return contents


@_MANY
@given(st.sampled_from(sorted(files())), st.data())
def test_a_damaged_file_is_refused_or_loads_numbers(tmp_path: Path, form: str, data: st.DataObject) -> None:
    """A changed byte of a tensor cannot be told, other than by its value; all else is refused."""
    content = bytearray(files()[form])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        edge = data.draw(st.sampled_from((64, 4096, len(content))))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, edge - 1))
            content[at if data.draw(st.booleans()) else len(content) - 1 - at] = data.draw(
                st.integers(0, 255)
            )
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    try:
        tensors = read_state_dict(path)
    except GkdError as error:
        assert str(path) in error.message
        return
    target = net()
    try:
        weights.load_into(target, tensors, path)
    except GkdError as error:
        assert str(path) in error.message
        return
    assert all(value.isfinite().all() for value in target.state_dict().values())
