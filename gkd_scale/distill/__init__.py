"""Stage 1: query-based soft distillation of a cached (or live) teacher into a student."""
