"""How the suite is spread over processes when it runs in several (pytest-xdist)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests that need Ray in one process, so that Ray starts once and its tests do not compete for cores."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))
