"""Addresses without the credentials in them, for whatever others read: the server's pages, logs and the console."""

from pipeline.urls import without_credentials

__all__ = ["without_credentials"]
