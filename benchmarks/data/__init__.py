"""Timing the data side: images, loaders, whole runs."""
