"""Hugging Face's image processors as LLaVA calls them: of the installed transformers and of another version.

Run as a script, this file answers for the transformers that it finds; it imports nothing of ours. LLaVA pins 4.37.2.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage

Background = tuple[int, int, int]


class Timed(NamedTuple):
    """One image."""

    pixels: npt.NDArray[np.float32]
    """`[3, P, P]`, normalised with CLIP's mean and std."""
    time_s: float
    """Of the thread on the core, without waiting for it."""


class ImageProcessor(Protocol):
    """Bytes of a JPEG to pixels."""

    def __call__(self, data: bytes) -> Timed:
        """Decode, pad, resize, normalise."""
        ...


class PaddingProcessor:
    """Pads with Pillow to a square (`expand2square` in LLaVA's `mm_utils.py`), then calls an image processor."""

    def __init__(self, kind: Any, side: int, background: Background) -> None:
        """Build an image processor of class `kind` for squares of `side` pixels."""
        self._processor = kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self._background = background

    def __call__(self, data: bytes) -> Timed:
        """Decode, pad, resize, normalise."""
        started = time.thread_time()
        image = PillowImage.open(io.BytesIO(data)).convert("RGB")
        side = max(image.size)
        square = PillowImage.new("RGB", (side, side), self._background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        pixels = self._processor.preprocess(square, return_tensors="pt")["pixel_values"][0]
        time_s = time.thread_time() - started
        return Timed(pixels.numpy().astype(np.float32), time_s)


@contextmanager
def processor_of(folder: Path, side: int, background: Background) -> Iterator[ImageProcessor]:
    """Start the `CLIPImageProcessor` of the transformers in a folder (`pip install --target`) in a process of its own.

    Raises:
        RuntimeError: it ended; the message is what it printed last.
    """
    arguments = [str(value) for value in (side, *background)]
    with subprocess.Popen(
        [sys.executable, "-P", __file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        requests, answers, errors = process.stdin, process.stdout, process.stderr

        def process_elsewhere(data: bytes) -> Timed:
            try:
                requests.write(struct.pack("<q", len(data)) + data)
                requests.flush()
                (time_s,) = struct.unpack("<d", answers.read(8))
            except (BrokenPipeError, struct.error):
                printed = errors.read().decode().strip().rsplit("\n", 1)[-1]
                raise RuntimeError(f"the image processor in {folder} ended: {printed}") from None
            values = np.frombuffer(answers.read(12 * side * side), np.float32)
            return Timed(values.reshape(3, side, side), time_s)

        try:
            yield process_elsewhere
        finally:
            process.kill()


def _answer(requests: BinaryIO, answers: BinaryIO, side: int, background: Background) -> None:
    from transformers import CLIPImageProcessor  # another version than the one that is type-checked

    processor = PaddingProcessor(CLIPImageProcessor, side, background)
    while size := requests.read(8):
        pixels, time_s = processor(requests.read(*struct.unpack("<q", size)))
        answers.write(struct.pack("<d", time_s) + pixels.tobytes())
        answers.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    side, red, green, blue = (int(value) for value in sys.argv[1:])
    _answer(sys.stdin.buffer, sys.stdout.buffer, side, (red, green, blue))
