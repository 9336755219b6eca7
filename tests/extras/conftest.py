"""The small runs of the integration tests, for tests that need an optional library."""

from tests.integration.conftest import shards, write_config

__all__ = ["shards", "write_config"]
