"""Segmentation heads. One head is one file; ``registry`` builds them by name."""
