"""Teaches the demo's language model to caption and to answer questions about scenes that are given in words.

It never sees a picture or a vision feature. So that features which say roughly the same can take the words' place
later, the word grids are disturbed: blurred over neighbouring cells, rescaled and mixed with noise.

Shapes: R examples, T tokens, N grids per example, C cells per grid, D model width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.demo_parts.schedule import cosine_with_warmup
from benchmarks.demo_parts.worded_scenes import NO_WORD, ExampleWriter, WordedBatch, write_examples
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from pipeline.tools.demo.scenes import GRID

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageLesson:
    """How long and on how much the language model is taught."""

    num_captions: int = 60_000
    num_conversations: int = 200_000
    num_held_out: int = 1_500
    """Conversations to check on afterwards."""
    num_steps: int = 7_000
    batch_size: int = 384
    learning_rate: float = 2e-3
    caption_share: float = 0.25
    """Share of the steps that train on captions."""
    max_blur: float = 0.3
    """Most that a cell takes from the mean of its neighbourhood, 0 to 1."""
    max_noise: float = 0.6
    """Largest noise, in standard deviations of the embeddings."""


def language_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the architecture: 1.5 million parameters."""
    return LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def teach_language_model(
    lesson: LanguageLesson, tokenizer: PreTrainedTokenizerBase, device: torch.device, num_processes: int
) -> LlamaForCausalLM:
    """Write examples, teach a new model on them, and log how well it answers about scenes it has not read."""
    captions = ExampleWriter(tokenizer, "caption", "backbones")
    conversations = ExampleWriter(tokenizer, "conversation", "backbones")
    groups = [
        *write_examples(captions, range(lesson.num_captions), num_processes),
        *write_examples(conversations, range(lesson.num_conversations), num_processes),
    ]
    groups = [group.to(device) for group in groups]
    held_out_conversations = ExampleWriter(tokenizer, "conversation", "backbones_held_out")
    held_out = write_examples(held_out_conversations, range(lesson.num_held_out), num_processes)
    logger.info("examples: %s", [tuple(group.input_ids.shape) for group in groups])
    torch.manual_seed(0)
    model = LlamaForCausalLM(language_config(tokenizer))
    nn.Module.to(model, device)  # `PreTrainedModel.to` has no usable type
    # Words start at the scale of vision features, so that a projector need not shrink them first.
    nn.init.normal_(cast(nn.Embedding, model.get_input_embeddings()).weight, std=0.3)
    _train(model, lesson, groups)
    for group in held_out:
        accuracy = answer_accuracy(model, group.to(device))
        logger.info("answers about %d worded scenes: %.4f", group.cells.shape[1], accuracy)
    nn.Module.cpu(model)
    return model


def _train(model: LlamaForCausalLM, lesson: LanguageLesson, groups: Sequence[WordedBatch]) -> None:
    shares = torch.tensor([len(group.input_ids) for group in groups], dtype=torch.float)
    shares[0] = lesson.caption_share / (1 - lesson.caption_share) * shares[1:].sum()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lesson.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    device = model.device
    for step in range(lesson.num_steps):
        group = groups[int(torch.multinomial(shares, 1))]
        batch = group.rows(torch.randint(len(group.input_ids), (lesson.batch_size,), device=device))
        optimizer.param_groups[0]["lr"] = lesson.learning_rate * cosine_with_warmup(step, lesson.num_steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, targets = supervised_logits(model, batch, lesson)
            loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == lesson.num_steps - 1:
            logger.info("language model step %d loss %.4f", step, loss.item())


def supervised_logits(
    model: LlamaForCausalLM, batch: WordedBatch, disturbance: LanguageLesson | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits [K, vocabulary] and targets int64 [K] of the supervised tokens.

    Padding is on the right and attention causal, so no attention mask is needed.
    """
    embed = cast(nn.Embedding, model.get_input_embeddings())
    is_cell = batch.input_ids == IMAGE_TOKEN_INDEX
    inputs = embed(batch.input_ids.clamp(min=0).long())
    cells = _embed_cells(embed.weight, batch.cells)
    if disturbance is not None:
        cells = _disturb(cells, disturbance)
    inputs = inputs.masked_scatter(is_cell[..., None], cells.to(inputs.dtype))
    states = model.model(inputs_embeds=inputs).last_hidden_state
    supervised = batch.labels[:, 1:] != IGNORE_INDEX
    return model.lm_head(states[:, :-1][supervised]), batch.labels[:, 1:][supervised].long()


def _embed_cells(words: Tensor, cells: Tensor) -> Tensor:
    """Add the words of each cell, scaled to the size of one word: [R, N, C, D]."""
    present = (cells != NO_WORD)[..., None]
    total = (words[cells.clamp(min=0).long()] * present).sum(-2)
    return total / present.sum(-2).sqrt()


def _disturb(cells: Tensor, lesson: LanguageLesson) -> Tensor:
    """Blur, rescale and add noise, each to another degree per grid."""
    rows, grids, _, width = cells.shape
    if rows * grids == 0:
        return cells

    def degree(low: float, high: float) -> Tensor:
        return torch.empty(rows, grids, 1, 1, device=cells.device).uniform_(low, high)

    planes = cells.reshape(rows * grids, GRID, GRID, width).permute(0, 3, 1, 2)
    near = F.avg_pool2d(planes, 3, stride=1, padding=1, count_include_pad=False)
    near = near.permute(0, 2, 3, 1).reshape(cells.shape)
    blurred = torch.lerp(cells, near, degree(0, lesson.max_blur))
    noise = torch.randn_like(blurred) * blurred.detach().std() * degree(0, lesson.max_noise)
    return (blurred + noise) * degree(0.7, 1.4)


@torch.no_grad()
def answer_accuracy(model: LlamaForCausalLM, group: WordedBatch) -> float:
    """Return the share of answers of which every token, end included, is the model's first choice."""
    right = total = 0
    for start in range(0, len(group.input_ids), 256):
        batch = WordedBatch(*(tensor[start : start + 256] for tensor in group))
        logits, targets = supervised_logits(model, batch)
        supervised = batch.labels[:, 1:] != IGNORE_INDEX
        # An answer is a run of supervised positions; a run starts where the position before is not supervised.
        starts = supervised & ~F.pad(supervised, (1, 0))[:, :-1]
        answer = starts.flatten().cumsum(0)[supervised.flatten()] - 1
        errors = torch.bincount(answer, weights=(logits.argmax(-1) != targets).float())
        right += int((errors == 0).sum())
        total += len(errors)
    return right / total
