"""Settings of S3 are found where the AWS tools find them, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.aws_settings import resolve_s3

CONFIG = """
[default]
region = eu-central-1
endpoint_url = http://default.example:9000

[profile lab]
region = eu-north-1
services = minio
ca_bundle = {ca}
s3 =
    addressing_style = virtual
    max_concurrent_requests = 5

[services minio]
s3 =
  endpoint_url = https://minio.lab.example:9443
"""

CREDENTIALS = """
[lab]
aws_access_key_id = LABKEY
aws_secret_access_key = LABSECRET
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / ".aws" / "config").write_text(CONFIG.format(ca=tmp_path / "ca.pem"))
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS)
    return {"HOME": str(tmp_path)}


def test_default_profile_is_used_without_any_setting(home: dict[str, str]) -> None:
    found = resolve_s3({}, home)
    assert (found.endpoint, found.scheme, found.region) == ("default.example:9000", "http", "eu-central-1")
    assert (found.keys, found.ca_bundle, found.virtual_addressing) == (None, None, False)


@pytest.mark.parametrize("chosen", ["option", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_named_profile_brings_endpoint_region_certificates_addressing_and_keys(
    home: dict[str, str], tmp_path: Path, chosen: str
) -> None:
    found = resolve_s3({"profile": "lab"}, home) if chosen == "option" else resolve_s3({}, {**home, chosen: "lab"})
    assert (found.endpoint, found.scheme, found.region) == ("minio.lab.example:9443", "https", "eu-north-1")
    assert (found.ca_bundle, found.virtual_addressing) == (str(tmp_path / "ca.pem"), True)
    assert found.keys == ("LABKEY", "LABSECRET", None)


def test_environment_goes_before_files_and_options_before_both(home: dict[str, str]) -> None:
    environment = {**home, "AWS_ENDPOINT_URL": "http://all:1", "AWS_REGION": "r1", "AWS_DEFAULT_REGION": "r2"}
    assert resolve_s3({}, environment)[:3] == ("all:1", "http", "r1")
    environment["AWS_ENDPOINT_URL_S3"] = "https://s3only:2"
    assert resolve_s3({}, environment)[:3] == ("s3only:2", "https", "r1")
    options = {"endpoint_override": "http://mine:3", "region": "r0"}
    assert resolve_s3(options, environment)[:3] == ("mine:3", "http", "r0")
    assert resolve_s3({"endpoint_override": "mine:3", "scheme": "http"}, environment)[:2] == ("mine:3", "http")
    environment["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
    assert resolve_s3({}, environment).endpoint is None


def test_keys_of_the_environment_go_before_those_of_its_profile(home: dict[str, str]) -> None:
    environment = {**home, "AWS_PROFILE": "lab", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    assert resolve_s3({}, environment).keys is None  # the SDK takes the environment's
    assert resolve_s3({"profile": "lab"}, environment).keys == ("LABKEY", "LABSECRET", None)


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"endpoint": "x"}, {}, "unknown option 'endpoint'"),
        ({"allow_bucket_creation": "true"}, {}, "unknown option 'allow_bucket_creation'"),
        ({"anonymous": "yes"}, {}, "expected true or false"),
        ({"scheme": "ftp"}, {}, "expected http or https"),
        ({"profile": "absent"}, {}, "AWS profile 'absent': neither in"),
        ({}, {"AWS_CA_BUNDLE": "/no/such.pem"}, "certificate file /no/such.pem: no such file"),
        ({}, {"AWS_ENDPOINT_URL": "http://u:p@h"}, "without user, password"),
        ({}, {"AWS_ENDPOINT_URL": "http://h/path"}, "without user, password or path"),
    ],
)
def test_setting_that_cannot_be_used_is_refused(
    home: dict[str, str], options: dict[str, str], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=r"option|profile|certificate|endpoint") as refused:
        resolve_s3(options, {**home, **environment})
    assert said in str(refused.value)
