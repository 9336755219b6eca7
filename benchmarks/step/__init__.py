"""Timing the training step against transformers on the same samples and weights."""
