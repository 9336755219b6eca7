"""Decode, pad and resize on one core: ours against Hugging Face's image processors and against the decoder alone.

The contenders take turns, two dozen images at a time, so that whatever else the machine does hits all of them alike;
time is that of the thread on the core, without waiting for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from transformers import CLIPImageProcessor, CLIPImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from benchmarks.data.data_rate import encode_jpeg
from benchmarks.data.image_processors import ImageProcessor, PaddingProcessor, processor_of
from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import Pixels, decode_image

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SIZE = 336
_NUM_IMAGES = 24
_OURS, _DECODE = "ours", "libjpeg-turbo decode alone"


def measure_image_path(num_rounds: int, other_transformers: Path | None = None) -> dict[str, Any]:
    """Measure images per second of one thread.

    Args:
        num_rounds: how often each contender takes each of the images.
        other_transformers: folder with another version of transformers, whose image processor takes part.

    Returns:
        Rates, the ratios that they are judged by (medians over turns of the same image), and the largest differences in
        grey levels to the image processors: the one on Pillow, which LLaVA was trained with, and the one on torchvision
        where that is installed.
    """
    torch.set_num_threads(1)
    images = [encode_jpeg(seed) for seed in range(_NUM_IMAGES)]
    spec = ImageSpec(size=_SIZE, mean=_MEAN, std=_STD)
    kinds = [CLIPImageProcessorPil, *([CLIPImageProcessor] if is_torchvision_available() else [])]
    processors: dict[str, ImageProcessor] = {
        kind.__name__: PaddingProcessor(kind, _SIZE, spec.background) for kind in kinds
    }
    with ExitStack() as others:
        if other_transformers is not None:
            name = f"CLIPImageProcessor of {_version_in(other_transformers)}"
            processors[name] = others.enter_context(processor_of(other_transformers, _SIZE, spec.background))
        contenders: dict[str, Callable[[bytes], float]] = {
            _OURS: _timed(lambda data: fit_image(decode_image(data), spec)),
            _DECODE: _timed(lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")),
            **{name: partial(_own_time, processor) for name, processor in processors.items()},
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(num_rounds):
            for name, contender in contenders.items():
                times[name] += [contender(data) for data in images]
        apart = {
            name: max(_grey_levels_apart(data, spec, processor) for data in images)
            for name, processor in processors.items()
        }
    ratios = {
        name: statistics.median(theirs / ours for ours, theirs in zip(times[_OURS], values, strict=True))
        for name, values in times.items()
    }
    return {
        "images": f"{_NUM_IMAGES} JPEGs of 640 x 480, {sum(map(len, images)) // len(images)} bytes, to {_SIZE}",
        "images/s": {name: 1 / statistics.median(values) for name, values in times.items()},
        "times Hugging Face": {name: ratios[name] for name in processors},
        "share of decode alone": ratios[_DECODE],
        "most grey levels apart": apart,
    }


def _timed(function: Callable[[bytes], Any]) -> Callable[[bytes], float]:
    def measure(data: bytes) -> float:
        started = time.thread_time()
        function(data)
        return time.thread_time() - started

    return measure


def _own_time(processor: ImageProcessor, data: bytes) -> float:
    return processor(data).time_s


def _version_in(folder: Path) -> str:
    found = sorted(folder.glob("transformers-*.dist-info"))
    if not found:
        raise FileNotFoundError(f"{folder}: no transformers there; expected what `pip install --target` leaves")
    return found[0].name.removesuffix(".dist-info").replace("-", " ")


def _grey_levels_apart(data: bytes, spec: ImageSpec, processor: ImageProcessor) -> int:
    values = np.moveaxis(processor(data).pixels, 0, -1) * np.array(_STD) + np.array(_MEAN)
    theirs: Pixels = np.rint(values * 255).astype(np.uint8)
    return int(np.abs(fit_image(decode_image(data), spec).astype(np.int16) - theirs).max())
