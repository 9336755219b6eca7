"""Whole runs on Ray, data stream and training together: one that the model limits, one that the data limit.

The second is held against its data stage alone: the same stream, consumed by nobody but a clock.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import ray
import torch
from rich.console import Console
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import pipeline.demo
from pipeline.benchmark.data_rate import encode_jpeg
from pipeline.benchmark.shapes import IMAGE_MEAN, IMAGE_STD, LANGUAGE_MODELS, image_size, vision_config
from pipeline.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
)
from pipeline.crashes.marks import WorkMarks
from pipeline.prepare import prepare_source
from pipeline.shards.writer import write_shards
from pipeline.stream import build_dataset, iterate_stream
from pipeline.training.launch import run_training
from pipeline.training.ray_launch import join_cluster
from pipeline.training.speed import WARMUP_STEPS, verdict

_TOKENIZER: Final = Path(pipeline.demo.__file__).parent / "weights" / "language_model"
_NUM_SAMPLES: Final = 256
_CAPTION: Final = "a red circle is left of a blue square and above a small green triangle"


def measure_end_to_end(folder: Path) -> dict[str, Any]:
    """Run both in `folder` and return their rates, data-wait shares and verdicts."""
    shards = _write_photographs(folder / "shards")
    console = Console(quiet=True)
    computing = _config(folder, "compute-bound", "384 x 6", shards, batch_size=16, num_steps=14)
    waiting = _config(folder, "data-bound", "tiny", shards, batch_size=32, num_steps=40)
    results: dict[str, Any] = {config.name: _train(config, console) for config in (computing, waiting)}
    alone = _stream_rate(waiting, console)
    results["data-bound"]["data stage alone, samples/s"] = alone
    results["data-bound"]["share of the data stage"] = results["data-bound"]["samples_per_s"] / alone
    return results


def _train(config: ExperimentConfig, console: Console) -> dict[str, Any]:
    metrics = run_training(config, console).metrics
    return {
        "samples_per_s": metrics["perf_mean/samples_per_s"],
        "data_wait_fraction": metrics["perf_mean/data_wait_fraction"],
        "verdict": verdict(metrics, config.cluster.data_workers),
    }


def _stream_rate(config: ExperimentConfig, console: Console) -> float:
    """Return samples per second of the stream alone, warm-up left out."""
    source = prepare_source(config, console=console)
    join_cluster(config.cluster)
    dataset = build_dataset(
        ray.put(source),
        start_step=0,
        end_step=source.plan.total_steps,
        num_ranks=1,
        data_workers=config.cluster.data_workers,
        refused={},
        marks=WorkMarks(Path(config.run_dir) / "working"),
    )
    steps = iterate_stream(
        dataset.iterator(), source, start_step=0, rank=0, num_ranks=1, prefetch_steps=config.cluster.prefetch_steps
    )
    started, samples = time.perf_counter(), 0
    for number, rank_step in enumerate(steps):
        if number < WARMUP_STEPS:
            started = time.perf_counter()
        else:
            samples += len(rank_step.sample_ids)
    return samples / (time.perf_counter() - started)


def _config(
    folder: Path, name: str, shape: str, shards: list[str], *, batch_size: int, num_steps: int
) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        run_dir=str(folder / name),
        stage="finetune",
        data=DataConfig(shards=tuple(shards), template="plain", max_length=512),
        model=_write_model(folder / "models" / shape.replace(" ", ""), shape),
        training=TrainingConfig(
            global_batch_size=batch_size,
            micro_batch_tokens=1024,
            learning_rate=1e-4,
            num_epochs=-(-batch_size * num_steps // _NUM_SAMPLES),
            max_steps=num_steps,
        ),
        checkpoint=CheckpointConfig(every_steps=10_000),
        cluster=ClusterConfig(data_workers=1, torch_threads=1, prefetch_steps=4),
        tracking=TrackingConfig(enabled=False),
    )


def _write_model(folder: Path, shape: str) -> ModelConfig:
    """Write a language model and a tower with random weights; returns the config that names them."""
    vocab_size = json.loads((_TOKENIZER / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    sizes = {**LANGUAGE_MODELS[shape], "vocab_size": max(vocab_size, LANGUAGE_MODELS[shape]["vocab_size"])}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "language_model")
    for file in _TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(file, folder / "language_model")
    CLIPVisionModel(vision_config(shape)).save_pretrained(folder / "tower")
    side = image_size(shape)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, "resample": 3,
        "crop_size": {"height": side, "width": side}, "image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD),
    }  # fmt: skip
    (folder / "tower" / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return ModelConfig(language_model=str(folder / "language_model"), vision_tower=str(folder / "tower"))


def _write_photographs(folder: Path) -> list[str]:
    """Write captioned 1280 x 960 JPEGs; a comment makes each file another one, so that none is decoded for two."""
    folder.mkdir(parents=True)
    pictures = [encode_jpeg(seed, width=1280, height=960) for seed in range(8)]

    def commented(number: int) -> bytes:
        comment = b"\xff\xfe" + struct.pack(">HI", 6, number)
        picture = pictures[number % len(pictures)]
        return picture[:2] + comment + picture[2:]

    samples: Iterator[dict[str, str | bytes]] = (
        {"__key__": f"{n:06d}", "jpg": commented(n), "txt": _CAPTION} for n in range(_NUM_SAMPLES)
    )
    return write_shards(samples, folder / "photographs-%06d.tar", max_samples=64)
