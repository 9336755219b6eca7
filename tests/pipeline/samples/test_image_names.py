"""Which names in annotations are URLs, and which members of a shard the others mean."""

from __future__ import annotations

import pytest

from pipeline.samples.image_names import is_url, resolve_images


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("https://host/a.jpg", True),
        (" S3://bucket/a.jpg", True),
        ("data:image/png;base64,AA", True),
        ("//host/a.jpg", True),
        ("file:///data/a.jpg", True),
        ("img:1.jpg", False),
        ("C:\\imgs\\a.jpg", False),
        ("/data/a.jpg", False),
        ("a//b.jpg", False),
    ],
)
def test_only_names_with_a_scheme_or_a_host_are_urls(name: str, expected: bool) -> None:
    assert is_url(name) is expected


def test_member_with_a_colon_in_its_key_is_found_by_its_name() -> None:
    present = ("0.jpg", "1.jpg")
    assert resolve_images("d/img:1", ["img:1.1.jpg", "d/img:1.0.jpg"], present, declared=True) == ("1.jpg", "0.jpg")
