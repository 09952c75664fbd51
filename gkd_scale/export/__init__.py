"""``gkd-scale export``: a finished run as files of other libraries. One format is one file."""
