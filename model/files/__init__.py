"""Checkpoint files: reading, names of tensors, the projector on disk."""
