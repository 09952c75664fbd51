"""``gkd-scale benchmark``: methods x seeds on one benchmark, and the paper's Table 1 of the results."""
