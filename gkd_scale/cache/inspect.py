"""``inspect``: what is in a cache, in words and as a picture.

The picture is a contact sheet: each stored view beside the map of its tokens, whose three leading principal
components (over all samples shown) are red, green and blue. If the map follows the objects of the view,
pixels and tokens belong together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from gkd_scale import console
from gkd_scale.cache.certificate import PATTERN, read_certificate
from gkd_scale.cache.codecs.base import Float32
from gkd_scale.cache.config import InspectConfig
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.shard import index_path, tar_path
from gkd_scale.cache.stored import pixel_cache
from gkd_scale.cache.views import decode
from gkd_scale.errors import ConfigError
from gkd_scale.files import atomic
from gkd_scale.types import UInt8Array

COLUMNS = 4
"""Pairs of view and map in a row of the contact sheet."""

_GAP = 4


def main(cfg: InspectConfig) -> None:
    """``gkd-scale inspect``: print what is in a cache, and write the contact sheet for ``--sheet``."""
    cache = Cache.open(cfg.cache)
    console.say(*describe(cache))
    if cfg.sheet is not None:
        contact_sheet(cache, cfg.sheet, cfg.samples, cfg.view)
        console.say(f"  sheet    {cfg.sheet}")


def describe(cache: Cache) -> list[str]:
    """The cache in lines: teacher, tokens, views, sizes, errors, certificates."""
    spec, teacher = cache.spec, cache.fingerprint
    tars = [tar_path(cache.path, *place) for place in spec.view_shards]
    indexes = [index_path(cache.path, *place) for place in spec.view_shards]
    tar_bytes, index_bytes = (
        sum(file.stat().st_size for file in files if file.exists()) for files in (tars, indexes)
    )
    versions = ("weights_sha256", "torch", "timm", "transformers")
    keys = ("model", "layer", "dtype", "mean", "std", "patch_size", "cls", *versions)
    facts = ", ".join(f"{key} {teacher[key]}" for key in keys if teacher.get(key) is not None)
    view = ", ".join(f"{key} {value}" for key, value in spec.view.items())
    total = spec.views * cache.num_samples
    lines = [
        f"{cache.path}: format {spec.format}, spec {spec.hash()[:16]}",
        f"  teacher  {facts}",
        f"  tokens   {spec.grid[0]}x{spec.grid[1]} of {spec.dim} channels, codec {spec.codec}",
        f"  views    {spec.views} of {spec.image_size[0]}x{spec.image_size[1]}, seed {spec.seed}: {view}",
        f"  images   {cache.num_samples} of {spec.images} readable",
        f"  files    {len(tars)} shards of {spec.samples_per_shard} images, {tar_bytes / 1e6:.1f} MB, "
        f"{tar_bytes / max(total, 1) / 1e3:.1f} kB a sample, indexes {index_bytes / 1e6:.2f} MB",
    ]
    if spec.pixels_of is not None:
        lines.append(f"  pixels   none: those of {spec.pixels.get('path')}, manifest sha256 {spec.pixels_of}")
    certificates = [read_certificate(path, spec.hash()) for path in sorted(cache.path.glob(PATTERN))]
    return lines + [f"  certified {certificate.line()}" for certificate in certificates]


def contact_sheet(cache: Cache, path: Path, samples: int = 12, view: int = 0) -> None:
    """Write a PNG of ``samples`` views, spread over the cache, each beside the map of its tokens.

    ConfigError for a view that the cache lacks, CacheError if its pixels cannot be found.
    """
    if view >= cache.spec.views:
        raise ConfigError(
            f"'view' is {view}, but {cache.path} has views 0 to {cache.spec.views - 1}",
            "give --view one of them",
        )
    count = min(samples, cache.num_samples)
    pixels, places = pixel_cache(cache), [number * cache.num_samples // count for number in range(count)]
    tokens = [cache.read(view, place).patches.astype(np.float32) for place in places]
    jpegs = [pixels.read_members(view, place, ("jpg",))["jpg"] for place in places]
    maps = rgb_maps(tokens, cache.grid)
    height, width = cache.image_size
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    cell = (2 * width + 2 * _GAP, height + _GAP)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    for number, (jpeg, colors) in enumerate(zip(jpegs, maps, strict=True)):
        left, top = number % columns * cell[0] + _GAP, number // columns * cell[1] + _GAP
        sheet.paste(Image.fromarray(decode(jpeg).transpose(1, 2, 0)), (left, top))
        token_map = Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(token_map, (left + width, top))
    with atomic(path) as file:
        sheet.save(file, "PNG")


def rgb_maps(tokens: list[Float32], grid: tuple[int, int]) -> list[UInt8Array]:
    """Tokens (N, C) of several images to maps (h, w, 3): their three leading principal components.

    Each component is scaled so that its 2nd and 98th percentiles over all images are black and full.
    """
    all_tokens = np.concatenate(tokens).astype(np.float64)
    mean = all_tokens.mean(axis=0)
    _, vectors = np.linalg.eigh((all_tokens - mean).T @ (all_tokens - mean))
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    values: list[npt.NDArray[np.float64]] = [(image_values - mean) @ axes for image_values in tokens]
    low, high = np.percentile(np.concatenate(values), [2, 98], axis=0)
    spread = np.maximum(high - low, 1e-12)
    maps = []
    for image_values in values:
        pixels = np.zeros((len(image_values), 3), np.uint8)
        pixels[:, : axes.shape[1]] = np.round(255 * np.clip((image_values - low) / spread, 0, 1))
        maps.append(pixels.reshape(*grid, 3))
    return maps
