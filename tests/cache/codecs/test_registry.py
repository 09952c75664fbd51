"""Codecs by name: names, bytes, states, refusals, and what one more codec takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gkd_scale.cache.build import build
from gkd_scale.cache.codecs import registry
from gkd_scale.cache.codecs.arithmetic import FP16_MAX
from gkd_scale.cache.codecs.base import Array, Codec, Float32, state_bytes, state_hash
from gkd_scale.cache.codecs.pca import Pca
from gkd_scale.cache.codecs.registry import CODECS, get_codec, is_fitted, load_codec, token_bytes
from gkd_scale.cache.codecs.tc import TransformCode
from gkd_scale.cache.reader import Cache
from gkd_scale.errors import CacheError, ConfigError
from tests.cache.support import TinyTeacher, config

from .support import FITTED_NAMES, PLAIN, codec_of, fit, through_files


def bits(tokens: Array) -> Array:
    """What fp16 tokens are made of, so that 0 and -0 differ."""
    return tokens.view(np.uint16)


EXTREMES = [0.0, 1e-8, 6e-5, 1.0, 448.0, FP16_MAX]


def test_names() -> None:
    assert is_fitted("pca96") and is_fitted("tc2.25") and not is_fitted("int8")
    for name, message in [
        ("in8", "did you mean 'int8'"),
        ("pca0", "pca"),
        ("tc9", "did you mean"),
        ("", "codecs: fp16, .*pcaK"),
        ("zip", "codecs: fp16"),
    ]:
        with pytest.raises(ConfigError, match=message):
            is_fitted(name)
    with pytest.raises(ConfigError, match="must be fitted"):
        get_codec("pca8")
    with pytest.raises(ConfigError, match="more components than the 24 channels"):
        fit(24, 25)


@pytest.mark.parametrize(("family", "kind"), [("pca", Pca), ("tc", TransformCode)])
def test_a_fitted_state_goes_through_its_file(family: str, kind: type) -> None:
    codec, values = fit(24, 4, family=family)
    data = state_bytes(codec)
    assert data is not None and state_bytes(codec) == data
    back = load_codec(codec.name, data, state_hash(data))
    assert type(back) is kind and back.name == f"{family}4"
    np.testing.assert_array_equal(through_files(back, values), through_files(codec, values))
    for content in (None, data[:-1], bytes(len(data))):
        with pytest.raises(CacheError, match=r"codec\.safetensors"):
            load_codec(codec.name, content, state_hash(data))
    assert state_bytes(get_codec("int8")) is None and state_hash(None) == ""


@pytest.mark.parametrize("name", [*PLAIN, "pca4", "tc4"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.nan, "not finite"), (-np.inf, "not finite"), (70000, "beyond fp16"), (65520, "beyond")],
)
def test_what_cannot_be_held_is_refused(name: str, bad: float, reason: str) -> None:
    values = np.zeros((3, 24), np.float32)
    values[1, 2] = bad
    codec = get_codec(name) if name in PLAIN else fit(24, 4, family=name[:-1])[0]
    with pytest.raises(ValueError, match=reason):
        codec.encode(values)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", EXTREMES)
def test_extreme_values_stay_finite_and_keep_their_sign(name: str, value: float) -> None:
    values = np.zeros((3, 8), np.float32)
    values[0], values[1, 3] = value, -value
    back = through_files(get_codec(name), values)
    assert (back[2] == 0).all()
    assert np.abs(back[:2] - values[:2]).max() <= 0.05 * value + 8e-6
    assert (values * back >= 0).all() or value < 1e-3


many = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(24)),
    elements=st.floats(-10000, 10000, width=32),
)


@pytest.mark.parametrize("name", [*PLAIN, *FITTED_NAMES])
@given(values=many)
@settings(max_examples=25)
def test_tensors_decode_as_arrays_do_bit_for_bit(name: str, values: Array) -> None:
    codec = codec_of(name)
    members = {key: torch.from_numpy(array) for key, array in codec.encode(values).items()}
    one = codec.decode_tensors(members)
    assert one.dtype == torch.float16 and one.shape == values.shape
    arrays = {key: tensor.numpy() for key, tensor in members.items()}
    np.testing.assert_array_equal(bits(one.numpy()), bits(codec.decode(arrays)))
    batch = codec.decode_tensors({key: torch.stack([tensor] * 3) for key, tensor in members.items()})
    np.testing.assert_allclose(batch.float(), one.float().expand(3, -1, -1), rtol=2**-9, atol=1e-3)


@pytest.mark.parametrize("name", [*PLAIN, *FITTED_NAMES])
@given(values=many)
@settings(max_examples=10)
def test_the_bytes_of_a_token_are_those_that_are_stored(name: str, values: Array) -> None:
    sizes = {key: array.nbytes for key, array in codec_of(name).encode(values).items()}
    assert sizes == {key: len(values) * size for key, size in token_bytes(name, 24).items()}


@given(st.one_of(st.from_regex(r"(pca|tc|int|fp|bf)[0-9.]{0,6}", fullmatch=True), st.text(max_size=8)))
def test_a_name_has_one_codec_or_is_refused(name: str) -> None:
    kinds = [kind for kind in CODECS if re.fullmatch(kind.family + kind.amount, name)]
    if kinds:
        assert len(kinds) == 1 and registry.parse(name) == (kinds[0], name.removeprefix(kinds[0].family))
        assert is_fitted(name) == (name not in PLAIN)
    else:
        with pytest.raises(ConfigError, match="there is no codec"):
            registry.parse(name)


@pytest.mark.parametrize("dim", [1, 2, 24, 1536])
def test_what_plan_suggests_is_a_name(dim: int) -> None:
    names = [kind.suggestion(dim) for kind in CODECS]
    assert [registry.parse(name)[0] for name in names] == list(CODECS)
    assert len(set(names)) == len(names)


class Half(Codec):
    """A codec from outside the package: every value rounded to a multiple of a half, as int16."""

    family = "half"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": 2 * dim}

    def encode(self, tokens: Float32) -> dict[str, Array]:
        return {"patch.npy": np.rint(2 * tokens).astype(np.int16)}

    def decode_tensors(self, members: Any) -> torch.Tensor:
        halves: torch.Tensor = (members["patch.npy"].float() / 2).half()
        return halves


def test_a_codec_is_one_class_and_one_row(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "CODECS", (*CODECS, Half))
    build(config(images, tmp_path / "half", codec="half"), TinyTeacher(gain=9.0), quiet=True)
    build(config(images, tmp_path / "fp16"), TinyTeacher(gain=9.0), quiet=True)
    coarse, fine = (Cache.open(tmp_path / name).read(0, 0).patches for name in ("half", "fp16"))
    assert (2 * coarse == np.rint(2 * coarse)).all() and 0 < np.abs(coarse - fine).max() <= 0.26
    with pytest.raises(ConfigError, match="did you mean 'half'"):
        is_fitted("hal")


@pytest.mark.parametrize("kind", CODECS)
def test_a_codec_is_named_in_its_file_and_its_row(kind: type[Codec]) -> None:
    """Its module is imported by the registry alone, and no other code of these packages spells its name.

    ``fp16`` is the reference for all others, so some code asks for it by name.
    """
    root = Path(registry.__file__).parents[2]
    mentions, imports = set(), set()
    for path in (path for room in ("cache", "distill", "models") for path in (root / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == kind.__module__:
                imports.add(path.name)
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.fullmatch(f"{kind.family}({kind.amount})?", text):
                mentions.add(path.name)
    assert imports == {"registry.py"}
    assert kind.family == "fp16" or mentions == {f"{kind.__module__.rpartition('.')[2]}.py"}
