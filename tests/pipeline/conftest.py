"""Fixtures that the pipeline's tests share with the integration tests."""

from tests.integration.conftest import shards, write_config

__all__ = ["shards", "write_config"]
