"""``gkd-scale doctor``: what of this machine, and of the nodes of a hostfile, a training can rely on.

A group of checks is one file with one function of the options that yields :class:`~.line.Line`s, and one row
in :mod:`.registry`. A check that raises or does not end becomes a line that says so.
"""
