"""Checkpoints as transactions: written aside, committed by a manifest, verified before anything is loaded."""
