"""Addresses without credentials, for text that others can read: the server's pages, logs and the console."""

from pipeline.storage.urls import without_credentials

__all__ = ["without_credentials"]
