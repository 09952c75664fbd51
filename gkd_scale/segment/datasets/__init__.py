"""Labelled datasets. One adapter is one file; ``registry`` opens ``ADAPTER:PATH``."""
