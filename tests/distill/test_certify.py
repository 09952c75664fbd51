from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gkd_scale.cache.certificate import certificate_path, codec_line, read_certificate
from gkd_scale.cache.codecs.registry import get_codec
from gkd_scale.cache.loader import CachedSource, Slot
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.verify import verify
from gkd_scale.cli import main
from gkd_scale.config import build
from gkd_scale.distill.certify import certify, recode
from gkd_scale.distill.config import CertifyConfig
from gkd_scale.errors import CacheError, ConfigError, DamageError
from tests.conftest import TINY, cache_flags


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cache, tmp_path / "cache"))


def config(cache: Path, codec: str | None, **changes: object) -> CertifyConfig:
    student = CertifyConfig(cache, codec, student="vit_tiny_patch16_224", student_args=dict(TINY))
    return replace(student, **{"steps": 3, "batch": 4, **changes})


def test_fp16_costs_nothing(cache: Path) -> None:
    certificate = certify(config(cache, "fp16"), quiet=True)
    assert (
        certificate.relative_mse,
        certificate.loss_change,
        certificate.trained_change,
        certificate.bytes_ratio,
    ) == (0, 0, 0, 1)
    assert certificate.attention_kl == pytest.approx(0, abs=1e-7)
    assert certificate.samples == 3 and certificate.sample_ratio == 1


def test_the_smaller_the_codec_the_higher_the_price(cache: Path) -> None:
    bf16, int8, tc1 = (certify(config(cache, codec), quiet=True) for codec in ("bf16", "int8", "tc1"))
    assert 0 < bf16.relative_mse < int8.relative_mse < 1e-3 < 0.01 < tc1.relative_mse < 1
    assert 0 < bf16.attention_kl < int8.attention_kl < tc1.attention_kl
    assert 5 * abs(int8.loss_change) < abs(tc1.loss_change) > 0.005
    assert abs(int8.trained_change) < 0.01 < abs(tc1.trained_change)
    assert tc1.bytes_ratio < int8.bytes_ratio < bf16.bytes_ratio == 1
    assert int8.bytes_ratio < int8.sample_ratio < 1


def test_the_measured_error_is_that_of_the_codec(cache: Path) -> None:
    whole = Cache.open(cache)
    source = CachedSource(whole, global_batch=1, micro_batch=1)
    batch = source.load([Slot(i, 0, index) for i, index in enumerate((0, 4, 8))])
    codec = get_codec("int8")
    tokens = batch.teacher.patches.float()
    for row, of_image in enumerate(recode(codec, batch).teacher.patches):
        np.testing.assert_array_equal(of_image, codec.decode(codec.encode(tokens[row].numpy())))
    variance = (tokens - tokens.flatten(0, 1).mean(0)).square().sum()
    error = (recode(codec, batch).teacher.patches.float() - tokens).square().sum()
    certificate = certify(config(cache, "int8"), quiet=True)
    assert certificate.relative_mse == pytest.approx(float(error / variance), rel=1e-5)
    assert torch.equal(recode(codec, batch).teacher.cls, batch.teacher.cls)


def test_the_certificate_lies_in_the_cache_and_verify_guards_it(cache: Path) -> None:
    certificate = certify(config(cache, "int8"), quiet=True)
    path = certificate_path(cache, "int8")
    spec = Cache.open(cache).spec.hash()
    assert read_certificate(path, spec) == certificate
    assert certificate == certify(config(cache, "int8"), quiet=True), "a function of the seed"
    lines: list[str] = []
    assert verify(cache, lines.append, quiet=True) == 0
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 4'))
    assert verify(cache, lines.append, quiet=True) == 1 and "checksum does not match" in lines[0]
    with pytest.raises(DamageError, match="measure again"):
        read_certificate(path, spec)


def test_a_small_cache_is_certified_against_an_fp16_reference(
    cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    images = Path(next(iter(tiny_teacher.parents[1].glob("cache*/images"))))
    assert main(["cache-teacher", *map(str, cache_flags(images, tiny_teacher, small)), "--codec", "tc3"]) == 0
    assert "without a certificate" in codec_line(small, Cache.open(small).spec.hash(), "tc3")
    with pytest.raises(CacheError, match="--reference"):
        certify(config(small, None), quiet=True)
    with pytest.raises(ConfigError, match="holds tc3 tokens, not int8"):
        certify(config(small, "int8", reference=cache), quiet=True)
    certificate = certify(config(small, None, reference=cache), quiet=True)
    assert certificate.codec == "tc3" and certificate.codec_state == Cache.open(small).spec.codec_state != ""
    line = codec_line(small, Cache.open(small).spec.hash(), "tc3")
    assert "certified tc3" in line and f"{certificate.loss_change:+.3%}" in line
    shutil.rmtree(small)


def test_mistakes(cache: Path) -> None:
    with pytest.raises(ConfigError, match="say which codec"):
        certify(config(cache, None), quiet=True)
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        certify(config(cache, "int7"), quiet=True)
    with pytest.raises(ConfigError, match="'steps' is 0"):
        build(CertifyConfig, {"cache": cache, "codec": "int8", "steps": 0})
