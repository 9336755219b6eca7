"""Decoding a batch token by token: one forward pass per step for all rows, each with its own sampling and its own end.

Rows may be added and cancelled between two steps. Those that have ended leave the batch at once.

Shapes: B rows, T text tokens, S positions in the cache, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from model.hub.weights import LlavaModel
from model.vision.pixels import normalize_pixels, pixel_stats_of
from pipeline.generation.answer_text import AnswerText
from pipeline.generation.cache import join_caches, join_masks, keep_rows
from pipeline.generation.choice import TokenChoice, choose_tokens
from pipeline.generation.requests import FinishReason, Prompt, Reply, Sampling
from pipeline.samples.prompt.ending import Ending


class Progress(NamedTuple):
    """What a step brought to one row."""

    row: int
    """As `Decoder.add` returned it."""
    text: str
    """New text, to be put after what came before; may be empty."""
    reply: Reply | None
    """The whole answer, once the row has ended."""


class Decoder:
    """A batch of answers in the making; for one thread.

    In float32 each answer is, token for token, the one that its prompt gets alone.
    """

    def __init__(self, model: LlavaModel, tokenizer: PreTrainedTokenizerBase, ending: Ending) -> None:
        """Start with an empty batch.

        Args:
            model: in evaluation mode.
            tokenizer: spells the answers.
            ending: what ends every answer.
        """
        self._model, self._tokenizer, self._ending = model, tokenizer, ending
        self._controls = {str(token): int(token_id) for token, token_id in tokenizer.get_added_vocab().items()}
        self._waiting: list[_Row] = []
        self._running: list[_Row] = []
        self._num_added = 0
        self._state: _State | None = None

    @property
    def num_rows(self) -> int:
        """Rows that have not ended, those that wait for their first step included."""
        return len(self._waiting) + len(self._running)

    def add(self, prompt: Prompt, sampling: Sampling) -> int:
        """Let a prompt join at the next step; returns the number of its row."""
        stop_ids = frozenset((*self._ending.token_ids, *(self._controls.get(stop, -1) for stop in sampling.stop)))
        stops = [stop for stop in (self._ending.text, *sampling.stop) if stop]
        text = AnswerText(self._spell, stops)
        self._waiting.append(_Row(self._num_added, prompt, sampling, stop_ids, text, TokenChoice(sampling)))
        self._num_added += 1
        return self._num_added - 1

    def cancel(self, row: int) -> None:
        """End a row; the next step reports its answer so far. A row that has ended stays as it is."""
        for one in (*self._waiting, *self._running):
            if one.number == row:
                one.finish_reason = "cancelled"

    @torch.no_grad()  # what inference_mode leaves in caches of the model could not be trained with later
    def step(self) -> list[Progress]:
        """Write one more token of every row.

        Returns:
            One entry per row of the batch, in the order in which they were added; without rows, none.
        """
        # 1. Rows that were cancelled leave before anything is computed for them.
        cancelled = [row for row in (*self._running, *self._waiting) if row.finish_reason is not None]
        self._waiting = [row for row in self._waiting if row.finish_reason is None]
        self._drop_ended()
        # 2. Logits of the rows at work, then of those that join.
        logits = [self._advance(self._state)] if self._state is not None else []
        if self._waiting:
            logits.append(self._join())
        # 3. Every row takes its token.
        progress = [row.report(row.text.close()) for row in cancelled]
        if logits:
            tokens = choose_tokens(torch.cat(logits), [row.choice for row in self._running])
            progress += [row.take(token) for row, token in zip(self._running, tokens, strict=True)]
            self._drop_ended()
        return sorted(progress)

    def _spell(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _advance(self, state: _State) -> Tensor:
        """Run the newest tokens through the model; logits [B, V]."""
        newest = torch.tensor([[row.token_ids[-1]] for row in self._running], device=self._model.device)
        state.mask = pad(state.mask, (0, 1), value=1)
        return self._forward(state, input_ids=newest, position_ids=state.mask.sum(dim=1, keepdim=True) - 1)

    def _join(self) -> Tensor:
        """Run the prompts that wait through the model, and put them into the batch; logits [B, V] of theirs."""
        prompts = [row.prompt for row in self._waiting]
        fused = self._model.fuse_prompts(**_inputs(self._model, prompts, self._ending.pad_id(self._tokenizer)))
        state = _State(DynamicCache(config=self._model.config), fused.attention_mask.long())
        logits = self._forward(state, inputs_embeds=fused.inputs_embeds, position_ids=fused.position_ids)
        if self._state is None:
            self._state = state
        else:
            join_caches(self._state.cache, state.cache)
            self._state.mask = join_masks(self._state.mask, state.mask)
        self._running, self._waiting = self._running + self._waiting, []
        return logits

    def _forward(self, state: _State, **inputs: Tensor) -> Tensor:
        output: Any = self._model(
            **inputs, attention_mask=state.mask, past_key_values=state.cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _drop_ended(self) -> None:
        kept = [idx for idx, row in enumerate(self._running) if row.finish_reason is None]
        if self._state is None or len(kept) == len(self._running):
            return
        self._running = [self._running[idx] for idx in kept]
        if not kept:
            self._state = None
            return
        rows = torch.tensor(kept, device=self._state.mask.device)
        mask = self._state.mask.index_select(0, rows)
        num_unused = int(mask.argmax(dim=1).min())
        keep_rows(self._state.cache, rows, num_unused)
        self._state.mask = mask[:, num_unused:]


@dataclass
class _State:
    """What the model has read of the rows at work."""

    cache: DynamicCache
    mask: Tensor
    """int64 [B, S]: 1 where a row has a token."""


@dataclass
class _Row:
    """One answer in the making."""

    number: int
    prompt: Prompt
    sampling: Sampling
    stop_ids: frozenset[int]
    text: AnswerText
    choice: TokenChoice
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, token: int) -> Progress:
        """Add the next token, and see whether the answer ends with it."""
        self.token_ids.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return self.report(self.text.close())
        new = self.text.add(token)
        if self.text.has_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.sampling.max_new_tokens:
            self.finish_reason, new = "length", new + self.text.close()
        return self.report(new)

    def report(self, new: str) -> Progress:
        """Return the row's new text, and the whole answer when it has ended."""
        self.pieces.append(new)
        if self.finish_reason is None:
            return Progress(self.number, new, None)
        whole = "".join(self.pieces)
        reply = Reply(whole, tuple(self.token_ids), self.prompt.num_tokens, self.finish_reason)
        return Progress(self.number, new, reply)


def _inputs(model: LlavaModel, prompts: Sequence[Prompt], pad_id: int) -> dict[str, Any]:
    """Return the arguments of `fuse_prompts`: ids and mask [B, T] padded on the right, tiles and how they are shown."""
    rows = [torch.from_numpy(prompt.input_ids) for prompt in prompts]
    images = [image for prompt in prompts for image in prompt.images]
    stats = pixel_stats_of(model.config) if images else None
    lengths = torch.tensor([len(row) for row in rows])
    tiles = [torch.from_numpy(image.pixels).to(model.device) for image in images]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id).to(model.device),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).to(model.device),
        "images": [normalize_pixels(tile, stats, model.dtype) for tile in tiles] if stats is not None else None,
        "image_sizes": [image.view for image in images] or None,
    }
