"""Decode, pad and resize on one core: ours against Hugging Face's image processors and against the decoder alone.

The contenders take turns, two dozen images at a time, so that whatever else the machine does hits all of them alike;
time is that of the thread on the core, without waiting for it.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image as PillowImage
from transformers import BaseImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from pipeline.benchmark.data_rate import encode_jpeg
from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import Pixels, decode_image

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SIZE = 336
_NUM_IMAGES = 24
_PROCESSORS = (CLIPImageProcessorPil, CLIPImageProcessor) if is_torchvision_available() else (CLIPImageProcessorPil,)


def measure_image_path(num_rounds: int) -> dict[str, Any]:
    """Measure images per second of one thread.

    Args:
        num_rounds: how often each contender takes each of the images.

    Returns:
        Rates, the ratios that they are judged by (medians over turns of the same image), and the largest differences in
        grey levels to the image processors: the one on Pillow, which LLaVA was trained with, and the one on torchvision
        where that is installed.
    """
    torch.set_num_threads(1)
    images = [encode_jpeg(seed) for seed in range(_NUM_IMAGES)]
    spec = ImageSpec(size=_SIZE, mean=_MEAN, std=_STD)
    contenders: dict[str, Callable[[bytes], Any]] = {
        "ours": lambda data: fit_image(decode_image(data), spec),
        "libjpeg-turbo decode alone": lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB"),
    }
    processors = {kind.__name__: _HuggingFace(kind, spec) for kind in _PROCESSORS}
    contenders |= processors
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, contender in contenders.items():
            for data in images:
                started = time.thread_time()
                contender(data)
                times[name].append(time.thread_time() - started)
    ours = times["ours"]

    def against(name: str) -> float:
        return statistics.median(their_s / our_s for our_s, their_s in zip(ours, times[name], strict=True))

    return {
        "images": f"{_NUM_IMAGES} JPEGs of 640 x 480, {sum(map(len, images)) // len(images)} bytes, to {_SIZE}",
        "images/s": {name: 1 / statistics.median(values) for name, values in times.items()},
        "times Hugging Face": {name: against(name) for name in processors},
        "share of decode alone": against("libjpeg-turbo decode alone"),
        "most grey levels apart": {
            name: max(_grey_levels_apart(data, spec, processor) for data in images)
            for name, processor in processors.items()
        },
    }


class _HuggingFace:
    """Pad with Pillow as LLaVA does, then an image processor."""

    def __init__(self, kind: type[BaseImageProcessor], spec: ImageSpec) -> None:
        self._spec = spec
        self._processor = kind(size={"shortest_edge": spec.size}, crop_size={"height": spec.size, "width": spec.size})

    def __call__(self, data: bytes) -> Any:
        image = PillowImage.open(io.BytesIO(data)).convert("RGB")
        side = max(image.size)
        square = PillowImage.new("RGB", (side, side), self._spec.background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return self._processor(square, return_tensors="pt")["pixel_values"][0]

    def grey_levels(self, data: bytes) -> Pixels:
        """Return its result with the normalisation undone."""
        values = self(data).movedim(0, -1).numpy() * np.array(_STD) + np.array(_MEAN)
        levels: Pixels = np.rint(values * 255).astype(np.uint8)
        return levels


def _grey_levels_apart(data: bytes, spec: ImageSpec, processor: _HuggingFace) -> int:
    ours = fit_image(decode_image(data), spec).astype(np.int16)
    return int(np.abs(ours - processor.grey_levels(data)).max())
