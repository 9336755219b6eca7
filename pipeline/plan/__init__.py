"""Which samples make up each optimizer step, and how they are cut over ranks and micro-batches: pure functions."""
