"""The Mask2Former head: Cheng et al., "Masked-attention Mask Transformer", CVPR 2022, arXiv 2112.01527.

A pixel decoder (deformable attention over strides 8 to 32, then one FPN level to stride 4) makes maps,
a transformer decoder lets Q queries look at them, and each query says a class (or none) and a mask. For
training, queries are matched to the classes that occur in an image; the pixel score of a class is the sum
over queries of its probability times the mask's. Modules and loss are those of ``transformers``; this file
adds what they need:

- The parts are built inside a ``PreTrainedModel`` whose ``post_init`` runs; otherwise the pixel decoder's
  level embedding is uninitialised memory.
- The loss is computed in float32 in any precision of the head. It is built anew for every batch: as a
  submodule, its class weights would be cast with the model and stored with every checkpoint.
- Masks are normalised by their mean number a rank; ``transformers`` knows other ranks through accelerate
  only, so this file sums the numbers over the ranks.
- All layers are supervised: ``transformers`` cannot train without the auxiliary losses.
- Matching and loss sample points with torch's global generator, which the loop seeds by (seed, step, rank).

Shapes: B images, Q queries, K classes, h x w the size of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from gkd_scale.segment.heads.base import SegHead, upsample
from gkd_scale.types import IGNORE, Size

WEIGHTS = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}
LEAST_SCORE = 1e-3
"""Added to every score before the logarithm: the score of a pixel that no query claims is 0."""

NO_OBJECT = 0.1
"""Weight of the class "none" in the cross-entropy."""


@dataclass(frozen=True)
class Shape:
    """The size of a decoder. ``points`` are sampled in each mask to compare it with its target."""

    width: int
    encoder_layers: int
    decoder_layers: int
    queries: int
    points: int
    encoder_feedforward: int
    decoder_feedforward: int


SIZES = {
    "paper": Shape(256, 6, 9, 100, 12544, 1024, 2048),
    "small": Shape(64, 2, 3, 32, 2048, 128, 256),
}
"""``paper`` is the decoder of the paper; ``small`` trains on a CPU."""


class Prediction(NamedTuple):
    """Logits of one layer's queries: ``masks`` (B, Q, h, w) and ``classes`` (B, Q, K+1)."""

    masks: Tensor
    classes: Tensor


class Mask2FormerHead(SegHead):
    """``size`` is ``paper`` or ``small``; each other argument replaces one number of it."""

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        *,
        size: str = "paper",
        width: int | None = None,
        encoder_layers: int | None = None,
        decoder_layers: int | None = None,
        queries: int | None = None,
        points: int | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size is '{size}', known are {' and '.join(SIZES)}")
        overrides = {
            "width": width,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "queries": queries,
            "points": points,
        }
        shape = replace(SIZES[size], **{key: value for key, value in overrides.items() if value is not None})
        self.decoder = Decoder(_config(shape, classes), channels)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """Scores (B, K, *size) in float32, 0 to Q: probabilities of classes times those of masks."""
        last = self.decoder(features)[-1]
        classes = last.classes.float().softmax(-1)[..., :-1]
        return torch.einsum("bqk,bqhw->bkhw", classes, upsample(last.masks.float(), size).sigmoid())

    def class_logits(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """log(score + 1e-3): its softmax is each class's share of a pixel's scores."""
        return (self(features, size) + LEAST_SCORE).log()

    def losses(self, features: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """``loss``, and its weighted parts ``cross_entropy``, ``mask`` and ``dice``, summed over layers.

        An ignored pixel is in no mask; as in the reference, queries learn to leave it out.
        """
        targets = [_masks(label) for label in labels]
        layers = [
            {"masks_queries_logits": layer.masks.float(), "class_queries_logits": layer.classes.float()}
            for layer in self.decoder(features)
        ]
        with torch.autocast(labels.device.type, enabled=False):
            terms = _Criterion(self.decoder.config, _mean_masks(targets)).to(labels.device)(
                **layers[-1],
                mask_labels=[masks for masks, _ in targets],
                class_labels=[classes for _, classes in targets],
                auxiliary_predictions=layers[:-1],
            )
        parts = {
            name: weight * sum(value for key, value in terms.items() if key.startswith(f"loss_{name}"))
            for name, weight in WEIGHTS.items()
        }
        return {"loss": sum(parts.values()), **parts}


class Decoder(Mask2FormerPreTrainedModel):
    """Pixel decoder, transformer decoder and class predictor, initialised as ``transformers`` does."""

    def __init__(self, config: Mask2FormerConfig, channels: Sequence[int]) -> None:
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.transformer = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, features: Sequence[Tensor]) -> list[Prediction]:
        """Maps (B, C_i, h_i, w_i), finest first, to the queries' predictions before and after each layer."""
        pixels = self.pixel_decoder(list(features))
        queries = self.transformer(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features
        )
        return [
            Prediction(masks, self.class_predictor(state.transpose(0, 1)))
            for masks, state in zip(
                queries.masks_queries_logits, queries.intermediate_hidden_states, strict=True
            )
        ]


class _Criterion(Mask2FormerLoss):
    """The loss of ``transformers`` with a number of masks from outside; it counts its own rank's only."""

    def __init__(self, config: Mask2FormerConfig, masks: Tensor) -> None:
        super().__init__(config, weight_dict={})
        self._masks = masks

    def get_num_masks(self, class_labels: object, device: object) -> Tensor:  # noqa: ARG002
        return self._masks


def _config(shape: Shape, classes: int) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        num_labels=classes,
        feature_size=shape.width,
        mask_feature_size=shape.width,
        hidden_dim=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers + 1,  # transformers counts the untouched queries as a layer
        num_queries=shape.queries,
        train_num_points=shape.points,
        encoder_feedforward_dim=shape.encoder_feedforward,
        dim_feedforward=shape.decoder_feedforward,
        class_weight=WEIGHTS["cross_entropy"],
        mask_weight=WEIGHTS["mask"],
        dice_weight=WEIGHTS["dice"],
        no_object_weight=NO_OBJECT,
    )


def _masks(label: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) ids to a mask (n, H, W) float32 and a class (n,) int64 for each class that occurs."""
    classes = label.unique()
    classes = classes[classes != IGNORE]
    return (label == classes[:, None, None]).float(), classes.long()


def _mean_masks(targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean number of masks a rank, at least 1. Collective if there are several ranks."""
    count = targets[0][0].new_tensor(float(sum(len(classes) for _, classes in targets)))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count.clamp(min=1)
