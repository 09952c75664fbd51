"""Teachers, students, masking and feature pyramids: the only package that imports timm."""
