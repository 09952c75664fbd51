"""Networks in files: under any prefix, in chunks, beside others, in the words of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.errors import ModelError
from gkd_scale.models import layouts, weights
from gkd_scale.models.tensor_files import StateDict
from tests.conftest import TINY

_SEGMENT = st.sampled_from(("module", "model", "backbone", "teacher", "_orig_mod", "base_model", "net", "x"))


def tiny(**extra: object) -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, **extra})


def features_of(state: StateDict, **extra: object) -> str:
    net = tiny(**extra)
    weights.load_into(net, state, "w.pth")
    return weights.fingerprint(net)


def under(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: value for name, value in state.items()}


@settings(max_examples=15)
@given(st.lists(_SEGMENT, max_size=4))
def test_any_prefix_is_found(segments: list[str]) -> None:
    source = tiny()
    prefix = "".join(f"{segment}." for segment in segments)
    state = {**under(prefix, source.state_dict()), "head.weight": torch.ones(3, 48), "step": torch.ones(())}
    assert features_of(state) == weights.fingerprint(source)


def test_wrappers_within_names_are_passed_over() -> None:
    source = tiny()
    state = {
        name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module._orig_mod."): value
        for name, value in under("_fsdp_wrapped_module.", source.state_dict()).items()
    }
    assert features_of(state) == weights.fingerprint(source)


def test_one_name_twice_is_refused() -> None:
    state = tiny().state_dict()
    with pytest.raises(ModelError, match=r"two tensors have the name norm\.bias"):
        features_of({**state, "_orig_mod.norm.bias": state["norm.bias"] + 1})


@pytest.mark.parametrize("chunks", [[2], [1, 1], [1, 2, 1], [3, 1]])
@pytest.mark.parametrize("counted_anew", [False, True])
def test_chunks_of_blocks_become_one_list(chunks: list[int], counted_anew: bool) -> None:
    depth = sum(chunks)
    source = tiny(depth=depth)
    places = [(chunk, local) for chunk, length in enumerate(chunks) for local in range(length)]
    state = source.state_dict()
    for block, (chunk, local) in enumerate(places):
        inner = local if counted_anew else block
        for name in [name for name in state if name.startswith(f"blocks.{block}.") and "chunk" not in name]:
            state[f"chunk.{chunk}.{inner}.{name.split('.', 2)[2]}"] = state.pop(name)
    state = {name.replace("chunk.", "blocks."): value for name, value in state.items()}
    assert features_of(state, depth=depth) == weights.fingerprint(source)


def test_a_networks_own_lists_of_lists_are_no_chunks() -> None:
    source = timm.create_model("mobilenetv3_small_050", num_classes=0)
    net = timm.create_model("mobilenetv3_small_050", num_classes=0)
    weights.load_into(net, under("model.", source.state_dict()), "w.pth")
    assert weights.fingerprint(net) == weights.fingerprint(source)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ("model_ema.", "model."),
        ("teacher.backbone.", "student.module.backbone."),
        ("params_ema.", "params."),
        ("", "momentum_encoder."),
        ("encoder.", "target_encoder."),
    ],
)
def test_of_two_networks_one_is_taken_and_named(
    winner: str, loser: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tiny(), tiny()
    both = {**under(loser, other.state_dict()), **under(winner, one.state_dict())}
    assert features_of(both) == weights.fingerprint(one)
    assert f"not '{loser.rstrip('.')}'" in capsys.readouterr().err


def test_a_larger_network_beside_the_one_that_is_asked_for_is_not_taken() -> None:
    source = tiny()
    deeper = under("teacher.backbone.", tiny(depth=4).state_dict())
    wider = under("ema.", tiny(embed_dim=96).state_dict())
    state = {**deeper, **wider, **under("student.backbone.", source.state_dict())}
    assert features_of(state) == weights.fingerprint(source)


def test_two_networks_that_nothing_tells_apart_are_refused_unless_equal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = tiny().state_dict(), tiny().state_dict()
    with pytest.raises(ModelError, match="two networks that fit and differ, 'left' and 'right'"):
        features_of({**under("left.", one), **under("right.", other)})
    features_of({**under("left.", one), **under("right.", one)})
    assert not capsys.readouterr().err


def test_moments_of_an_optimiser_are_no_network() -> None:
    source = tiny()
    moments = {name: torch.zeros_like(value) for name, value in source.state_dict().items()}
    state = {**under("optimizer.exp_avg.", moments), **under("model.", source.state_dict())}
    assert features_of(state) == weights.fingerprint(source)
    with pytest.raises(ModelError):
        features_of(under("optimizer.exp_avg.", moments))


_HF: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
}
_TIMM: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 14, "img_size": 56}
_WIDE = {"hidden_size": 96, "intermediate_size": 384, "num_register_tokens": 4}


def _transformers(kind: str) -> tuple[torch.nn.Module, str, str, dict[str, Any]]:
    """A network of transformers, its backbone within it, timm's name and arguments of the same."""
    t = transformers
    mlp = {"use_gated_mlp": True, "hidden_act": "silu"}
    models = {
        "dinov2": (t.Dinov2Model(t.Dinov2Config(**_HF)), "", "vit_small_patch14_dinov2.lvd142m", {}),
        "dinov2 with a head": (
            t.Dinov2ForImageClassification(t.Dinov2Config(**_HF)),
            "dinov2",
            "vit_small_patch14_dinov2.lvd142m",
            {},
        ),
        "dinov2 giant": (
            t.Dinov2Model(t.Dinov2Config(**_HF, use_swiglu_ffn=True)),
            "",
            "vit_giant_patch14_dinov2.lvd142m",
            {"mlp_ratio": 256 / 48},
        ),
        "registers": (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**_HF, num_register_tokens=4)),
            "",
            "vit_small_patch14_reg4_dinov2.lvd142m",
            {},
        ),
        "vit": (
            t.ViTForImageClassification(t.ViTConfig(**_HF, intermediate_size=192)),
            "vit",
            "vit_tiny_patch16_224",
            {},
        ),
        "deit": (
            t.DeiTModel(t.DeiTConfig(**_HF, intermediate_size=192)),
            "",
            "deit_tiny_distilled_patch16_224",
            {},
        ),
        "dinov3": (
            t.DINOv3ViTModel(t.DINOv3ViTConfig(**{**_HF, **_WIDE})),
            "",
            "vit_small_patch16_dinov3_qkvb.lvd1689m",
            {"embed_dim": 96},
        ),
        "dinov3 plus": (
            t.DINOv3ViTModel(t.DINOv3ViTConfig(**{**_HF, **_WIDE, **mlp})),
            "",
            "vit_small_plus_patch16_dinov3_qkvb.lvd1689m",
            {"embed_dim": 96},
        ),
    }
    return models[kind]


@pytest.mark.parametrize("form", ["as published", "as in memory"])
@pytest.mark.parametrize(
    "kind",
    ["dinov2", "dinov2 with a head", "dinov2 giant", "registers", "vit", "deit", "dinov3", "dinov3 plus"],
)
@pytest.mark.filterwarnings("ignore")
def test_features_of_transformers_networks_are_theirs(kind: str, form: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    theirs, within, name, args = _transformers(kind)
    with torch.no_grad():
        for parameter in theirs.eval().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if form == "as published":
        theirs.save_pretrained(tmp_path)  # type: ignore[operator]
        state = weights.read_state_dict(tmp_path / "model.safetensors")
    else:
        state = dict(theirs.state_dict())
    ours = timm.create_model(name, num_classes=0, **{**_TIMM, **args}).eval()
    weights.load_into(ours, state, "model.safetensors")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = (getattr(theirs, within) if within else theirs)(pixels).last_hidden_state
        torch.testing.assert_close(ours.forward_features(pixels), expected, atol=1e-4, rtol=1e-4)


def test_biases_of_dinov3_that_the_model_lacks_are_refused_unless_zero() -> None:
    theirs, _, _, args = _transformers("dinov3")
    ours = timm.create_model("vit_small_patch16_dinov3.lvd1689m", num_classes=0, **{**_TIMM, **args})
    state = dict(theirs.state_dict())
    weights.load_into(ours, state, "w.pth")
    biases = [name for name in state if name.endswith("q_proj.bias")]
    with pytest.raises(ModelError, match="holds biases"):
        weights.load_into(ours, {**state, biases[0]: state[biases[0]] + 1}, "w.pth")


def test_registers_are_known_without_a_mask_token() -> None:
    args = {**_TIMM, "img_size": 56}
    source = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", num_classes=0, **args)
    state = source.state_dict()
    cls = torch.randn(1, 1, 48)
    metas = {
        **{name: value for name, value in state.items() if name not in ("reg_token", "cls_token")},
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - cls,
        "pos_embed": torch.cat([cls, state["pos_embed"]], 1),
    }
    net = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", num_classes=0, **args)
    weights.load_into(net, metas, "w.pth")
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_no_prefix_is_taken_where_names_are_others() -> None:
    own = tiny().state_dict()
    layout = layouts.find(own, {"conv.weight": torch.ones(3)}, lambda part: part)
    assert (layout.prefix, layout.copies) == ("", ())
