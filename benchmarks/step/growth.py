"""How the cost of a training step grows: with sequence length, images per sample and vocabulary, one at a time."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from benchmarks.step.shapes import features_per_image, image_size, llava_config
from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.fusion.packed import PackedBatch, pack_samples
from model.hub.weights import set_trainable
from model.llava.attention import enable_packed_attention
from pipeline.training.measures.memory import peak_resident_bytes, reset_peak_resident, resident_bytes

_SHAPE: Final = "384 x 6"
_TOKENS: Final = 2048
"""Tokens of the one micro-batch that is timed."""


class Point(NamedTuple):
    """One measured size."""

    size: int
    step_time_s: float
    growth_bytes: int
    """Growth of the resident set while the step runs: activations and gradients."""
    tokens: int


def measure_growth(num_threads: int) -> dict[str, list[dict[str, float]]]:
    """Measure all curves in a process of its own, whose memory is not that of whatever ran before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_all, num_threads).result()


def _measure_all(num_threads: int) -> dict[str, list[dict[str, float]]]:
    torch.set_num_threads(num_threads)
    vocabulary = llava_config(_SHAPE).vocab_size
    curves: dict[str, tuple[tuple[int, ...], Callable[[int], Point]]] = {
        "sequence length": ((128, 256, 512, 1024, 2048), lambda n: _point(n, [n] * (_TOKENS // n), 0, vocabulary)),
        "images per sample": ((0, 1, 2, 4, 8), lambda n: _point(n, [100] * 4, n, vocabulary)),
        "vocabulary": ((8000, 32000, 64000, 128000), lambda n: _point(n, [256] * (_TOKENS // 256), 0, n)),
    }
    measured: dict[str, Any] = {}
    for name, (sizes, measure) in curves.items():
        measured[name] = [measure(size)._asdict() for size in sizes]
    return measured


def _point(size: int, text_lengths: list[int], images_per_sample: int, vocab_size: int) -> Point:
    torch.manual_seed(0)
    config = llava_config(_SHAPE)
    config.vocab_size = vocab_size
    model = LlavaLlamaForCausalLM(config)
    enable_packed_attention(model, "auto")
    set_trainable(model, "finetune")
    nn.Module.train(model)
    batch = _pack(text_lengths, images_per_sample, vocab_size)
    side = image_size(_SHAPE)
    pixels = torch.rand(images_per_sample * len(text_lengths), 3, side, side)
    _step(model, batch, pixels)
    times, growth = [], 0
    for _ in range(2):
        _release_memory()
        before = resident_bytes()
        reset_peak_resident()
        started = time.perf_counter()
        _step(model, batch, pixels)
        times.append(time.perf_counter() - started)
        growth = max(growth, peak_resident_bytes() - before)
    return Point(size, min(times), growth, len(batch.input_ids))


def _pack(text_lengths: list[int], images_per_sample: int, vocab_size: int) -> PackedBatch:
    samples = []
    for length in text_lengths:
        ids = torch.cat([torch.full((images_per_sample,), IMAGE_TOKEN_INDEX), torch.randint(3, vocab_size, (length,))])
        labels = ids.clone()
        labels[: images_per_sample + length // 2] = IGNORE_INDEX
        samples.append((ids, labels))
    return pack_samples(samples, [features_per_image(_SHAPE)] * (images_per_sample * len(samples)))


def _step(model: LlavaLlamaForCausalLM, batch: PackedBatch, pixels: torch.Tensor) -> None:
    """Run forward and backward; gradients are dropped, and not updated with, since that does not grow."""
    features = model.encode_vision(pixels).flatten(0, 1) if len(pixels) else None
    model.packed_loss(batch, features).backward()
    model.zero_grad(set_to_none=True)


def _release_memory() -> None:
    """Give freed memory back, so that the next step's growth counts from what is in use."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
