"""What stage 1 can minimise. An objective is one file and its row in ``registry``."""
