"""Fidelity certificates: what a codec does to the method's own loss, kept beside the tokens.

``certificate-{codec}.json`` lies in the root of a cache. It is written long after the manifest and is not
part of its chain of checksums; it carries its own checksum and the hash of the spec it was measured on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gkd_scale.cache.spec import digest
from gkd_scale.commands import shell
from gkd_scale.errors import DamageError
from gkd_scale.files import write_json

PATTERN = "certificate-*.json"


@dataclass(frozen=True)
class Certificate:
    """Measured on ``samples`` held-out samples with a QSD head trained for ``steps`` steps.

    ``relative_mse``: squared error over the tokens' variance. ``attention_kl``: mean KL divergence of the
    head's attention, nats a query. ``loss_change``: relative change of L_QSD when the tokens, keys and
    targets alike, are swapped under the trained student. ``trained_change``: relative change of L_QSD on
    the original tokens when student and heads were trained on the codec's. ``bytes_ratio``: bytes of the
    patch members over fp16's; ``sample_ratio``: of whole samples, pixels included.
    """

    spec: str
    codec: str
    codec_state: str
    teacher: str
    student: str
    samples: int
    steps: int
    seed: int
    relative_mse: float
    attention_kl: float
    loss_change: float
    trained_change: float
    bytes_ratio: float
    sample_ratio: float

    def line(self) -> str:
        """The certificate in one line."""
        return (
            f"{self.codec}: {self.bytes_ratio:.3f} of fp16's bytes, relative MSE {self.relative_mse:.2e}, "
            f"attention KL {self.attention_kl:.2e}, QSD loss {self.loss_change:+.3%} on its tokens, "
            f"{self.trained_change:+.3%} when trained on them ({self.samples} samples, {self.steps} steps)"
        )


def certificate_path(folder: Path, codec: str) -> Path:
    """The path of the certificate of ``codec`` in a cache."""
    return folder / f"certificate-{codec}.json"


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Store a certificate in the cache; it replaces an earlier one of the same codec."""
    content = asdict(certificate)
    path = certificate_path(folder, certificate.codec)
    write_json(path, {**content, "checksum": digest(content)}, unlocked=True)


def read_certificate(path: Path, spec: str) -> Certificate:
    """The certificate in a file of the cache with spec hash ``spec``; DamageError if it is not whole."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("checksum") != digest(content):
            raise ValueError("its checksum does not match its content")
        certificate = Certificate(**content)
        if certificate_path(path.parent, certificate.codec) != path:
            raise ValueError(f"it is of codec {certificate.codec}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DamageError(f"{path} is damaged: {error}", _hint(path)) from None
    if certificate.spec != spec:
        raise DamageError(f"{path} was measured on another cache", _hint(path))
    return certificate


def _hint(path: Path) -> str:
    return f"remove it, then measure again: {shell('gkd-scale', 'certify', path.parent)}, as before"


def certificate_damage(path: Path, spec: str) -> str:
    """What is wrong with a certificate's file; '' if nothing."""
    try:
        read_certificate(path, spec)
    except DamageError as error:
        return error.message.removeprefix(f"{path} ")
    return ""


def codec_line(folder: Path, spec: str, codec: str) -> str:
    """A line about the tokens of a cache, for the head of a training run."""
    path = certificate_path(folder, codec)
    if codec == "fp16":
        return f"{folder}: fp16 tokens"
    if not path.exists():
        return f"{folder}: {codec} tokens without a certificate (gkd-scale certify measures their price)"
    return f"{folder}: certified {read_certificate(path, spec).line()}"
