"""Whole models on disk: put together, saved, loaded, adapted, exported, imported."""
