"""The optimizers of a training, by name. Light: nothing here imports torch.

DeepSpeed's own LAMB and Muon are not used. Its LAMB takes the norms of what a rank holds, which under ZeRO is
a part of many parameters. Its Muon clips the update in place of the gradient, and needs a state that our
checkpoints do not hold. The ones here know the parts of each parameter (:mod:`.layout`).
"""

from __future__ import annotations

DEFAULT = "adamw"
OPTIMIZERS = {
    DEFAULT: "AdamW",
    "lamb": "LAMB: AdamW's step, scaled for each tensor by its norm, for large global batches",
    "muon": "Muon: an orthogonal step for each matrix, AdamW for the rest",
}
HELP = "; ".join(f"{name} is {what}" if name == DEFAULT else what for name, what in OPTIMIZERS.items())
