"""Segmentation: labelled datasets, heads on a frozen backbone, stage 2, and mIoU on unseen domains.

What stage 1 hands over is a file (``backbone.safetensors`` + ``backbone.yaml``), never an import:
``segment`` and ``distill`` do not know each other.
"""
