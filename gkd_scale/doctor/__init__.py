"""``gkd-scale doctor``: checks this machine, and the nodes of a hostfile, before a training relies on them.

A group of checks is one file with one function of the options that yields :class:`~.line.Line`s, and one row
in :mod:`.registry`. A check that raises or does not end becomes a line that says so.
"""
