"""Running the command in this process, with its exit code and both outputs; image files to run it on."""

import io
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from jobs.cli import run as run_command_line
from jobs.console import LOG_FORMAT


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int | str | None
    output: str
    messages: str


RunCommand = Callable[..., Ended]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[RunCommand]:
    root_level = logging.getLogger().level

    def run(*arguments: str) -> Ended:
        monkeypatch.setenv(LOG_FORMAT, "")  # which a command before this one may have set
        monkeypatch.setattr("sys.argv", ["ray-llava", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command_line()
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    yield run
    logging.getLogger().setLevel(root_level)
    for package in ("jobs", "pipeline", "model"):
        logging.getLogger(package).setLevel(logging.NOTSET)


def png(seed: int, width: int, height: int) -> bytes:
    """Return an image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
