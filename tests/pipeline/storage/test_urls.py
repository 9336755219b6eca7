"""One way to write the URL of an object: what is taken as it is, and what is refused."""

from __future__ import annotations

import pytest

from pipeline.storage.urls import check_local, parse_object_url, without_credentials


@pytest.mark.parametrize(
    "key",
    [
        "a.tar",
        "a b.tar",
        "a+b.tar",
        "50%.tar",
        "a%20b.tar",
        "[x]{y}.tar",
        "lauf-ä-日本.tar",
        "x..y.tar",
        "a&b=c;d,e.tar",
        "p/",
    ],
)
def test_key_is_taken_as_it_is(key: str) -> None:
    parsed = parse_object_url(f"s3://buck/d/{key}?region=eu-west-1&endpoint_override=h:9000")
    assert (parsed.bucket, parsed.key) == ("buck", f"d/{key}")
    assert dict(parsed.options) == {"region": "eu-west-1", "endpoint_override": "h:9000"}
    assert parsed.path == f"buck/d/{key}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://b/a#1.tar", "'#'"),
        ("s3://b/a?b.tar", "rename it"),
        ("s3://b/a/../c.tar", "'.', '..' or nothing"),
        ("s3://b/./c.tar", "'.', '..' or nothing"),
        ("s3://b/a//c.tar", "'.', '..' or nothing"),
        ("s3://b/a\tb.tar", "control characters"),
        ("s3:///a.tar", "expected s3://bucket/path"),
        ("s3://id:secret@b/a.tar", "user and password"),
        ("gs://id@b/a.tar", "user and password"),
        ("http://b/a.tar", "expected s3:// or gs://"),
    ],
)
def test_url_that_names_nothing_safely_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match="shard ") as refused:
        parse_object_url(url, "shard")
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "path", ["s3://b/runs/a", "s3:/b/runs/a", "gs://b/a", "hdfs://h/a", "file:///a", "abfss://c@h/a"]
)
def test_url_where_a_folder_is_expected_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"run_dir .* is a URL, expected a folder; do this"):
        check_local(path, "run_dir", "do this")


@pytest.mark.parametrize("path", ["/a/b", "a:b/c", "runs/s3:x", "C:x", "."])
def test_path_is_no_url(path: str) -> None:
    assert check_local(path, "run_dir", "") == path


def test_text_loses_credentials() -> None:
    assert without_credentials("at s3://k:s@b/a and http://u@h") == "at s3://b/a and http://h"
