"""Where S3 is and how to reach it, found as the AWS command line does: options, environment, `~/.aws` files.

pyarrow's SDK looks for credentials and region by itself, but not for endpoints, certificates or named profiles.
Order: https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

S3_OPTIONS = frozenset(
    {"anonymous", "endpoint_override", "force_virtual_addressing", "profile", "region", "scheme", "tls_ca_file_path"}
)
VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HOME",
)
"""What of the environment decides."""


class S3Settings(NamedTuple):
    """How to connect; None leaves a choice to the SDK."""

    endpoint: str | None
    """HOST[:PORT]."""
    scheme: str
    region: str | None
    ca_bundle: str | None
    virtual_addressing: bool
    anonymous: bool
    keys: tuple[str, str, str | None] | None
    """Access key, secret key and session token of a named profile."""


def resolve_s3(options: Mapping[str, str], environment: Mapping[str, str]) -> S3Settings:
    """Return how to reach S3.

    Args:
        options: Those of a URL.
        environment: Variables of the process.

    Raises:
        ValueError: an option, an endpoint, a profile or a certificate file that is not one.
    """
    if unknown := sorted(options.keys() - S3_OPTIONS):
        raise ValueError(f"s3 URL: unknown option {unknown[0]!r}; expected {', '.join(sorted(S3_OPTIONS))}")
    profile = options.get("profile") or environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    files = _AwsFiles.read(environment)
    section = files.config(profile or "default")
    keys = files.keys(profile) if options.get("profile") or not environment.get("AWS_ACCESS_KEY_ID") else None
    if profile is not None and section is None and keys is None:
        raise ValueError(f"AWS profile {profile!r}: neither in {files.config_path} nor in {files.credentials_path}")
    section = section or {}
    endpoint, scheme = _split_endpoint(_endpoint(options, environment, files, section), options.get("scheme"))
    ca_bundle = options.get("tls_ca_file_path") or environment.get("AWS_CA_BUNDLE") or section.get("ca_bundle")
    if ca_bundle is not None and not Path(ca_bundle).is_file():
        raise ValueError(f"certificate file {ca_bundle}: no such file (tls_ca_file_path, AWS_CA_BUNDLE or ca_bundle)")
    style = _nested(section.get("s3", "")).get("addressing_style")
    return S3Settings(
        endpoint=endpoint,
        scheme=scheme,
        region=options.get("region")
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or section.get("region")
        or ("us-east-1" if endpoint else None),  # of stores that have none, any will do
        ca_bundle=ca_bundle,
        virtual_addressing=_flag(options, "force_virtual_addressing") or style == "virtual",
        anonymous=_flag(options, "anonymous"),
        keys=keys,
    )


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in ("true", "false"):
        raise ValueError(f"s3 URL: option {name}={value}; expected true or false")
    return value == "true"


def _endpoint(
    options: Mapping[str, str], environment: Mapping[str, str], files: _AwsFiles, section: Mapping[str, str]
) -> str | None:
    if "endpoint_override" in options:
        return options["endpoint_override"]
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    services = files.services(section.get("services"))
    return (
        environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or _nested(services.get("s3", "")).get("endpoint_url")
        or section.get("endpoint_url")
    )


def _split_endpoint(endpoint: str | None, scheme: str | None) -> tuple[str | None, str]:
    """Return HOST[:PORT] and the scheme; a full address has its own."""
    if scheme not in (None, "http", "https"):
        raise ValueError(f"s3 URL: option scheme={scheme}; expected http or https")
    if not endpoint:
        return None, scheme or "https"
    if "://" not in endpoint:
        return endpoint, scheme or "https"
    parts = urlsplit(endpoint)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.path not in ("", "/")
    ):
        raise ValueError("S3 endpoint: expected http(s)://HOST[:PORT] without user, password or path")
    return parts.netloc, scheme or parts.scheme


def _nested(text: str) -> dict[str, str]:
    """Return the indented settings of a section, such as those under `s3 =`."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


class _AwsFiles(NamedTuple):
    """The two files of the AWS tools."""

    config_path: Path
    credentials_path: Path
    parsed_config: configparser.RawConfigParser
    parsed_credentials: configparser.RawConfigParser

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> _AwsFiles:
        home = Path(environment.get("HOME") or "~").expanduser() / ".aws"
        config = Path(environment.get("AWS_CONFIG_FILE") or home / "config").expanduser()
        credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser()
        return cls(config, credentials, _parse(config), _parse(credentials))

    def config(self, profile: str) -> dict[str, str] | None:
        """Return the settings of a profile; None if the file has none."""
        for name in (f"profile {profile}", profile):
            if self.parsed_config.has_section(name):
                return dict(self.parsed_config.items(name))
        return None

    def services(self, name: str | None) -> dict[str, str]:
        section = f"services {name}"
        return dict(self.parsed_config.items(section)) if self.parsed_config.has_section(section) else {}

    def keys(self, profile: str | None) -> tuple[str, str, str | None] | None:
        """Return the keys of a named profile; those of the default one the SDK finds itself."""
        if profile is None:
            return None
        found: dict[str, str] = {}
        if self.parsed_credentials.has_section(profile):
            found = dict(self.parsed_credentials.items(profile))
        elif (section := self.config(profile)) is not None:
            found = section
        if "aws_access_key_id" not in found or "aws_secret_access_key" not in found:
            return None
        return found["aws_access_key_id"], found["aws_secret_access_key"], found.get("aws_session_token")


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except configparser.Error as error:
        reason, _, _ = str(error).partition("\n")
        raise ValueError(f"{path}: not a file of the AWS tools: {reason}") from None
    return parser
