"""Can the CPU side feed the device: samples encoded per second by one process and by one per core.

The work is that of the data stage after reading: decode, pad, resize, tokenize, mask. Storage is left out.
"""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import random
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.fusion.resolution import Resolution
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec
from pipeline.samples.schema import Sample, parse_sample

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NUM_SAMPLES = 24


class _Job(NamedTuple):
    """Work of one process."""

    name: str
    encoder: SampleEncoder
    samples: list[Sample]
    seconds: float


def measure_data_rates(seconds: float, num_processes: int | None = None, image_size: int = 336) -> dict[str, Any]:
    """Measure encoded samples per second.

    Args:
        seconds: how long each measurement runs.
        num_processes: processes at a time; None takes one per core.
        image_size: side of the tower's square, pixels.

    Returns:
        Rates of captions with a 640 x 480 JPEG and of conversations without an image, for one and for all processes.
    """
    processes = num_processes or len(os.sched_getaffinity(0))
    images = [encode_jpeg(seed) for seed in range(_NUM_SAMPLES)]
    tokenizer = train_tokenizer()
    spec = ImageSpec(size=image_size, mean=_MEAN, std=_STD)
    resolution = Resolution("pad", image_size, tile_features=576, tile_grid=24)
    work = {
        "captions with a 640 x 480 JPEG": ("plain", [caption_sample(k, image) for k, image in enumerate(images)]),
        "conversations of 8 turns, text only": ("v1", [conversation_sample(k) for k in range(_NUM_SAMPLES)]),
    }
    jobs = [
        _Job(name, SampleEncoder(tokenizer, template, spec, resolution, 2048), samples, seconds)
        for name, (template, samples) in work.items()
    ]
    return {
        "processes": processes,
        "jpeg_bytes": sum(map(len, images)) // len(images),
        "jpeg_decoder": "simplejpeg" if importlib.util.find_spec("simplejpeg") else "Pillow",
        "samples/s of one process": {job.name: _rate(job) for job in jobs},
        "samples/s of all processes": _rates_of_all(jobs, processes),
    }


def encode_jpeg(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Draw an image with the spectrum of photographs (amplitude falls with frequency) and encode it as JPEG."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    planes = np.fft.irfft2(phases / frequency**1.5, (height, width))
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    planes = 128 + 50 * planes[:1] + 15 * planes  # channels of a photograph are mostly brightness
    buffer = io.BytesIO()
    PillowImage.fromarray(np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on made-up words, since none can be downloaded everywhere."""
    rng = random.Random(0)
    words = [_word(rng) for _ in range(5000)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(rng.choices(words, k=40)) for _ in range(300)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def caption_sample(seed: int, image: bytes) -> Sample:
    """Return an image with a caption of twelve words."""
    return parse_sample(f"{seed:06d}", {"jpg": image, "txt": _text(seed, 12).encode()})


def conversation_sample(seed: int) -> Sample:
    """Return a conversation of four questions and answers, about 300 words."""
    turns = [
        {"from": speaker, "value": _text(seed * 100 + k, 15 if speaker == "human" else 60)}
        for k, speaker in enumerate(("human", "gpt") * 4)
    ]
    return parse_sample(f"{seed:06d}", {"json": json.dumps({"id": str(seed), "conversations": turns}).encode()})


def _word(rng: random.Random) -> str:
    return "".join(rng.choices("etaoinshrdlcumwfgypbvk", k=rng.randint(2, 9)))


def _text(seed: int, num_words: int) -> str:
    rng = random.Random(seed)
    return " ".join(_word(rng) for _ in range(num_words))


def _rates_of_all(jobs: list[_Job], processes: int) -> dict[str, float]:
    """Return samples per second of each job over all processes, which work on it at the same time."""
    # fork would copy the locks of the parent's threads, spawn would load torch once per process: a minute for 16
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_work, args=(jobs, barrier, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    totals = {job.name: 0.0 for job in jobs}
    for _ in range(processes * len(jobs)):
        name, rate = results.get()
        totals[name] += rate
    for worker in workers:
        worker.join()
    return totals


def _work(jobs: list[_Job], barrier: Any, results: Any) -> None:
    for job in jobs:
        job.encoder.encode(job.samples[0])
        barrier.wait()
        results.put((job.name, _rate(job)))


def _rate(job: _Job) -> float:
    """Return samples per second of this process, on one thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - started) < job.seconds:
        job.encoder.encode(job.samples[count % len(job.samples)])
        count += 1
    return count / elapsed
