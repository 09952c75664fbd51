"""The demo: the embedded data, its small teacher, and the whole pipeline on them."""
