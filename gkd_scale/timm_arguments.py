"""Ranges of numbers among the arguments of ``timm.create_model``; timm itself takes nearly any."""

from __future__ import annotations

from gkd_scale.ranges import Range

_COUNT = Range(ge=1, le=1e9, whole=True, hint="give a whole number, for example depth=12")
_SHARE = Range(ge=0, lt=1, hint="a share, from 0 to below 1")
_RATIO = Range(gt=0, le=1000)

TIMM_ARGUMENTS = {
    **dict.fromkeys(
        (
            *("depth", "depths", "embed_dim", "embed_dims", "dims", "num_heads", "patch_size", "img_size"),
            *("window_size", "output_stride", "head_dim", "stem_width", "cardinality"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            *("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate"),
            *("patch_drop_rate", "drop_block_rate"),
        ),
        _SHARE,
    ),
    "in_chans": Range(ge=3, le=3, hint="images have three channels"),
    "mlp_ratio": _RATIO,
    "init_values": Range(ge=0, le=10, hint="of LayerScale, for example 1e-5"),
    "reg_tokens": Range(ge=0, le=1000, whole=True),
    "num_classes": Range(ge=0, le=1_000_000, whole=True),
}
