"""Files of a run folder that are not checkpoints: atomic writes, the lease of the one writer, starts and their ends."""
