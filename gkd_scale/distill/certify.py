"""``certify``: what a codec costs, measured on the attention and the loss that will use its tokens.

Cosine or MSE alone do not measure it: teacher tokens are keys of an unscaled softmax and the target at once.
So a student and its heads are trained for a few hundred steps on the fp16 tokens of a real cache; then, on
samples that they have not seen, the tokens are swapped for what the codec makes of them. A second student
with the same seed is trained on the codec's tokens and judged on the original ones: that is the price a
training run pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from gkd_scale import console
from gkd_scale.cache.certificate import Certificate, certificate_path, write_certificate
from gkd_scale.cache.codecs.base import Codec, Float32, state_bytes, state_hash
from gkd_scale.cache.codecs.registry import fit_codec, get_codec, is_fitted
from gkd_scale.cache.loader import CachedSource, Slot
from gkd_scale.cache.reader import Cache, refuse_unlike
from gkd_scale.cache.shard import npy_bytes
from gkd_scale.distill.config import CertifyConfig, published
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.errors import CacheError, ConfigError
from gkd_scale.models.students import load_student
from gkd_scale.moments import Moments
from gkd_scale.randomness import generator, seed_of
from gkd_scale.types import Batch, Features

Swap = Callable[[Batch], Batch]

HELD_OUT = 4
"""Every fourth sample is kept from training and from fitting, up to ``--samples`` of them."""


def main(cfg: CertifyConfig) -> None:
    """``gkd-scale certify``: print the certificate and where it is."""
    certificate = certify(cfg)
    console.say(certificate.line(), f"stored in {certificate_path(cfg.cache, certificate.codec)}")


def certify(cfg: CertifyConfig, *, quiet: bool = False) -> Certificate:
    """Measure a codec on a cache and store the certificate in it. Raises CacheError or ConfigError."""
    cache = Cache.open(cfg.cache)
    reference = _reference(cfg, cache)
    held_out = list(range(0, reference.num_samples, HELD_OUT))[: cfg.samples]
    training = sorted(set(range(reference.num_samples)) - set(held_out))
    if not training:
        raise CacheError(
            f"{reference.path} has {reference.num_samples} samples: too few to train and to judge",
            "give a cache of 2 samples or more",
        )
    codec = _codec(cfg, cache, reference, training)
    source = CachedSource(reference, global_batch=1, micro_batch=1)
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("certify", total=2 * cfg.steps)

        def train(swap: Swap) -> Distiller:
            return _train(cfg, reference, _draws(cfg, source, training), swap, lambda: bar.advance(task))

        swap = partial(recode, codec)
        plain, other = train(lambda batch: batch), train(swap)
    certificate = Certificate(
        spec=cache.spec.hash(),
        codec=codec.name,
        codec_state=state_hash(state_bytes(codec)),
        teacher=str(reference.fingerprint["model"]),
        student=cfg.student,
        samples=len(held_out),
        steps=cfg.steps,
        seed=cfg.seed,
        **_measure(plain, other, swap, _batches(source, held_out, cfg.batch)),
        **_sizes(reference, codec, held_out[:32]),
    )
    write_certificate(cfg.cache, certificate)
    return certificate


def recode(codec: Codec, batch: Batch) -> Batch:
    """The batch with patch tokens as ``codec`` gives them back."""
    patches = [codec.decode(codec.encode(tokens)) for tokens in batch.teacher.patches.float().numpy()]
    return replace(batch, teacher=Features(batch.teacher.cls, torch.from_numpy(np.stack(patches))))


def _reference(cfg: CertifyConfig, cache: Cache) -> Cache:
    """The fp16 cache that has the original tokens."""
    reference = Cache.open(cfg.reference) if cfg.reference else cache
    if reference.spec.codec != "fp16":
        raise CacheError(
            f"{reference.path} holds {reference.spec.codec} tokens; to judge them needs the originals",
            "give --reference CACHE, a (small) fp16 cache of the same teacher and image size",
        )
    refuse_unlike(cache, reference)
    reference.require_pixels("give --reference CACHE, an fp16 cache of this teacher that stores its pixels")
    return reference


def _codec(cfg: CertifyConfig, cache: Cache, reference: Cache, samples: Sequence[int]) -> Codec:
    """The cache's own codec, or ``cfg.codec``, fitted to ``samples`` of the reference."""
    codec = cache.spec.codec
    if codec != "fp16":
        if cfg.codec not in (None, codec):
            raise ConfigError(f"{cache.path} holds {codec} tokens, not {cfg.codec}", "leave --codec out")
        return cache.codec
    if cfg.codec is None:
        raise ConfigError(f"{cache.path} holds fp16 tokens", "say which codec to judge: --codec int8")
    if not is_fitted(cfg.codec):
        return get_codec(cfg.codec)
    moments = Moments(reference.dim)
    for index in samples[:: max(1, len(samples) // cfg.codec_fit)]:
        moments.update(reference.read(0, index).patches)
    return fit_codec(cfg.codec, moments.mean, moments.covariance)


def _batches(source: CachedSource, samples: Sequence[int], size: int) -> list[Batch]:
    """View 0 of ``samples`` in batches of ``size``."""
    cuts = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [source.load([Slot(place, 0, index) for place, index in enumerate(cut)]) for cut in cuts]


def _draws(cfg: CertifyConfig, source: CachedSource, samples: Sequence[int]) -> Iterator[Batch]:
    """Endless random training batches; a function of the seed."""
    for step in count():
        rng = generator("certify", cfg.seed, step)
        indexes = rng.choice(samples, min(cfg.batch, len(samples)), replace=False)
        yield source.load([Slot(place, step, int(index)) for place, index in enumerate(indexes)])


def _train(
    cfg: CertifyConfig, cache: Cache, batches: Iterator[Batch], swap: Swap, advance: Callable[[], None]
) -> Distiller:
    """A student and its heads after ``cfg.steps`` steps of AdamW with a cosine schedule."""
    torch.manual_seed(seed_of("init", cfg.seed))
    student = load_student(cfg.student, cache.image_size, cache.grid, args=cfg.student_args)
    loss, qsd = published()
    space = TeacherSpace(cache.dim, cache.grid)
    distiller = Distiller(student, space, loss=loss, qsd=qsd, seed=cfg.seed)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=cfg.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.steps)
    for batch in islice(batches, cfg.steps):
        loss = distiller(distiller.draws.add(swap(batch)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance()
    return distiller.eval()


@torch.no_grad()
def _measure(plain: Distiller, other: Distiller, swap: Swap, batches: Sequence[Batch]) -> dict[str, float]:
    """The certificate's measurements over held-out ``batches``."""
    losses, kls, errors = [], [], []
    mean = torch.cat([batch.teacher.patches.float().flatten(0, 1) for batch in batches]).mean(0)
    for batch in batches:
        new = swap(batch)
        pairs = ((plain, batch), (plain, new), (other, batch))
        of_batch = [float(model(model.draws.add(b))["loss"]) for model, b in pairs]
        losses.append(np.array(of_batch) * len(batch.sids))
        kls.append(_attention_kl(plain, batch, new))
        target = batch.teacher.patches.float()
        error = (new.teacher.patches.float() - target).square().sum()
        errors.append((float(error), float((target - mean).square().sum())))
    before, after, other_loss = np.sum(losses, axis=0)
    error, variance = np.sum(errors, axis=0)
    return {
        "relative_mse": float(error / variance),
        "attention_kl": float(torch.cat(kls).mean()),
        "loss_change": float(after / before - 1),
        "trained_change": float(other_loss / before - 1),
    }


def _attention_kl(distiller: Distiller, batch: Batch, new: Batch) -> Tensor:
    """KL(``batch``, ``new``) of the feature head's attention, in nats, for each query: (B·N,)."""
    head = distiller.head_feature
    queries = head.proj_q(distiller.features(batch.pixels).patches)
    logs = [
        torch.log_softmax(queries @ b.teacher.patches.float().transpose(1, 2) * head.scale, dim=-1)
        for b in (batch, new)
    ]
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1).flatten()


def _sizes(cache: Cache, codec: Codec, samples: Sequence[int]) -> dict[str, float]:
    """Bytes under ``codec`` over bytes under fp16: of the patch members, and of whole samples."""
    fp16, small, rest = 0, 0, 0
    for index in samples:
        sample = cache.read(0, index)
        tokens: Float32 = sample.patches.astype(np.float32)
        rest += len(sample.jpeg) + len(npy_bytes(sample.cls))
        fp16 += sum(len(npy_bytes(array)) for array in get_codec("fp16").encode(tokens).values())
        small += sum(len(npy_bytes(array)) for array in codec.encode(tokens).values())
    return {"bytes_ratio": small / fp16, "sample_ratio": (small + rest) / (fp16 + rest)}
