"""The methods that GKD is compared with: one stage, encoder and head trained together, L_task + λ·L_KD."""
