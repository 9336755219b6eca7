"""Consoles of the commands: as wide as the terminal, and without hard line breaks in files and job logs."""

import os
import sys

from rich.console import Console

from jobs.log_format import JsonConsole

LOG_FORMAT = "RAY_LLAVA_LOG_FORMAT"
"""Environment variable: `text` or `json`; processes that a command starts inherit it."""


def writes_json() -> bool:
    """Whether this process writes its log and messages as JSON."""
    return os.environ.get(LOG_FORMAT) == "json"


def output_console() -> Console:
    """Return the console for results."""
    if writes_json():
        return JsonConsole(stderr=False, level="INFO")
    return Console(soft_wrap=not sys.stdout.isatty())


def message_console() -> Console:
    """Return the console for messages that are not results; they go to stderr."""
    if writes_json():
        return JsonConsole(stderr=True, level="INFO")
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty())
