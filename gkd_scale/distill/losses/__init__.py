"""What stage 1 compares: one file a loss, with its formula and source. Light: nothing here imports torch.

A *distance* compares the student's projected tokens with the teacher's conditioned ones, and is what L_feat,
L_mask and L_cls are made of: its row is in :data:`DISTANCES`. A *term* is added with a weight of its own: its
row is that weight, a field of ``LossConfig`` in ``distill/config.py``.
"""

DISTANCES = {
    "mse": "gkd_scale.distill.losses.mse:mse",
    "cosine": "gkd_scale.distill.losses.cosine:cosine",
}
"""By name, the default first: (student, teacher), both (B, N, C), to a scalar, the mean over tokens."""
