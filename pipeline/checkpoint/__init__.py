"""Checkpoints as transactions: written aside, proven by a manifest, verified before anything is loaded."""
