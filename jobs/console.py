"""Consoles of the commands: as wide as the terminal, and without hard line breaks in files and job logs."""

import sys

from rich.console import Console


def output_console() -> Console:
    """Return the console for results."""
    return Console(soft_wrap=not sys.stdout.isatty())


def message_console() -> Console:
    """Return the console for messages that are not results; they go to stderr."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty())
