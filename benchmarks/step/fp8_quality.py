"""What FP8 layers cost in quality: losses of the same training in bfloat16 and FP8, seed by seed.

    python -m benchmarks.step.fp8_quality --out results.json

First a decoder learns to describe scenes given in words (the lesson of the demo's language model); then, frozen, it
reads features of unknown meaning through a projector that learns. Both are done in bfloat16 and in FP8 on the same data
in the same order; seeds differ in initial weights and in order.

Shapes: R examples, N grids, C cells per grid, D model width.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.demo_parts.teach_language_model import _embed_cells, supervised_logits
from benchmarks.demo_parts.vocabulary import build_tokenizer
from benchmarks.demo_parts.worded_scenes import ExampleWriter, WordedBatch, write_examples
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.llava.fp8_linear import quantize_layers, refresh_learning_layers
from model.llava.fp8_mlp import join_gated_mlps

Precision = Literal["bfloat16", "fp8"]
_FEATURE_WIDTH: Final = 96
_MEAN_OF: Final = 50
"""Last steps whose mean loss is compared."""


class Lesson(NamedTuple):
    """Sizes of the experiment."""

    num_examples: int = 40_000
    num_held_out: int = 1_000
    batch_size: int = 192
    decoder_steps: int = 300
    projector_steps: int = 200
    width: int = 384
    num_layers: int = 4


def build_decoder(lesson: Lesson, vocab_size: int, device: torch.device) -> LlamaForCausalLM:
    """Build a decoder with random weights, float32."""
    config = LlamaConfig(
        vocab_size=-(-vocab_size // 16) * 16,
        hidden_size=lesson.width,
        intermediate_size=lesson.width * 11 // 4 // 16 * 16,
        num_hidden_layers=lesson.num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = LlamaForCausalLM(config)
    nn.Module.to(model, device)
    nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    return model


class Projector(nn.Module):
    """Maps features, a fixed random code of a cell's words with noise, into the decoder's embeddings."""

    code: Tensor

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(99)  # the same features for all seeds
        self.register_buffer("code", torch.randn(vocab_size, _FEATURE_WIDTH, generator=generator))
        self.layers = nn.Sequential(nn.Linear(_FEATURE_WIDTH, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, cells: Tensor) -> Tensor:
        """Return `[R, N, C, D]` for word ids `[R, N, C, 4]`."""
        features = _embed_cells(self.code, cells)
        out: Tensor = self.layers(features + 0.1 * torch.randn_like(features))
        return out


def teach_decoder(
    model: LlamaForCausalLM, precision: Precision, groups: Sequence[WordedBatch], lesson: Lesson, seed: int
) -> list[float]:
    """Train all weights; returns the loss of every step."""
    if precision == "fp8":
        quantize_layers(model.model.layers)

    def loss_of(batch: WordedBatch) -> Tensor:
        refresh_learning_layers(model, compiled=False)
        logits, targets = supervised_logits(model, batch)
        return F.cross_entropy(logits.float(), targets)

    return _train(list(model.parameters()), loss_of, groups, lesson, seed, lesson.decoder_steps, 1e-3)


def teach_projector(
    model: LlamaForCausalLM, precision: Precision, groups: Sequence[WordedBatch], lesson: Lesson, seed: int
) -> list[float]:
    """Train a projector before the frozen decoder; returns the loss of every step."""
    model.requires_grad_(False)
    nn.Module.bfloat16(model)
    if precision == "fp8":
        quantize_layers(model.model.layers)
        join_gated_mlps(model.model.layers)
    torch.manual_seed(seed + 1000)
    projector = Projector(model.config.vocab_size, model.config.hidden_size).to(model.device)

    def loss_of(batch: WordedBatch) -> Tensor:
        logits, targets = _logits_through(projector, model, batch)
        return F.cross_entropy(logits.float(), targets)

    return _train(list(projector.parameters()), loss_of, groups, lesson, seed, lesson.projector_steps, 2e-3)


def _logits_through(projector: Projector, model: LlamaForCausalLM, batch: WordedBatch) -> tuple[Tensor, Tensor]:
    inputs = model.model.embed_tokens(batch.input_ids.clamp(min=0).long())
    is_cell = (batch.input_ids == IMAGE_TOKEN_INDEX)[..., None]
    inputs = inputs.masked_scatter(is_cell, projector(batch.cells).to(inputs.dtype))
    states = model.model(inputs_embeds=inputs).last_hidden_state
    supervised = batch.labels[:, 1:] >= 0
    return model.lm_head(states[:, :-1][supervised]), batch.labels[:, 1:][supervised].long()


def _train(
    parameters: list[nn.Parameter],
    loss_of: Callable[[WordedBatch], Tensor],
    groups: Sequence[WordedBatch],
    lesson: Lesson,
    seed: int,
    num_steps: int,
    peak_lr: float,
) -> list[float]:
    torch.manual_seed(seed)
    device = parameters[0].device
    shares = torch.tensor([float(len(group.input_ids)) for group in groups])
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    losses = []
    for step in range(num_steps):
        group = groups[int(torch.multinomial(shares, 1))]
        batch = group.rows(torch.randint(len(group.input_ids), (lesson.batch_size,)).to(device))
        optimizer.param_groups[0]["lr"] = peak_lr * min(1.0, (step + 1) / 50) * (1 - step / num_steps)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def run_seed(seed: int, lesson: Lesson, groups: list[WordedBatch], vocab_size: int) -> dict[str, Any]:
    """Do both trainings in both precisions; returns the losses by training and precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = [group.to(device) for group in groups]
    torch.manual_seed(seed)
    start = build_decoder(lesson, vocab_size, device)
    taught = copy.deepcopy(start)
    results: dict[str, Any] = {"decoder": {"bfloat16": teach_decoder(taught, "bfloat16", on_device, lesson, seed)}}
    results["decoder"]["fp8"] = teach_decoder(start, "fp8", on_device, lesson, seed)
    results["projector"] = {
        precision: teach_projector(copy.deepcopy(taught), precision, on_device, lesson, seed)
        for precision in ("bfloat16", "fp8")
    }
    return results


def summarize(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return, by training, the mean loss of the last steps of every seed and how precisions and seeds differ."""
    summary = {}
    for training in ("decoder", "projector"):
        ends = {
            precision: [sum(run[training][precision][-_MEAN_OF:]) / _MEAN_OF for run in by_seed]
            for precision in ("bfloat16", "fp8")
        }
        differences = [fp8 - plain for plain, fp8 in zip(ends["bfloat16"], ends["fp8"], strict=True)]
        spread = max(ends["bfloat16"]) - min(ends["bfloat16"])
        summary[training] = {**ends, "fp8_minus_bfloat16": differences, "spread_of_seeds": spread}
    return summary


def main() -> None:
    """Run all seeds side by side and write losses and summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rehearsal", action="store_true", help="a minute's work, to see that everything runs")
    arguments = parser.parse_args()
    lesson = Lesson(200, 20, 8, 60, 60, 64, 2) if arguments.rehearsal else Lesson()
    started = time.perf_counter()
    tokenizer = build_tokenizer()
    groups = write_examples(ExampleWriter(tokenizer, "conversation", "backbones"), range(lesson.num_examples), 16)
    groups = [group for group in groups if group.cells.shape[1] == 1]  # one picture: one length, one speed
    print(f"{[tuple(group.input_ids.shape) for group in groups]} examples, {time.perf_counter() - started:.0f} s")
    with ProcessPoolExecutor(arguments.seeds, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_seed, seed, lesson, groups, len(tokenizer)) for seed in range(arguments.seeds)]
        by_seed = [run.result() for run in runs]
    summary = summarize(by_seed)
    arguments.out.write_text(json.dumps({"summary": summary, "losses": by_seed}) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1), f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
