"""Addresses without the credentials in them, for whatever others read: the server's pages, logs and the console."""

import re

_USER_INFO = re.compile(r"(?<=://)[^/\s\"'\\]*@")


def without_credentials(text: str) -> str:
    """Return a text whose addresses have lost user and password: `s3://key:secret@bucket/a` becomes `s3://bucket/a`.

    Args:
        text: An address, or anything that holds some, such as JSON, YAML or a message.
    """
    return _USER_INFO.sub("", text)
