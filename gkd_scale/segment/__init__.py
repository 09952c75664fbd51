"""Segmentation: labelled datasets, heads on a frozen backbone, stage 2, and mIoU on unseen domains.

Stage 1 hands over files (``backbone.safetensors`` + ``backbone.yaml``): ``segment`` and ``distill`` never
import each other.
"""
