"""What is asked of a model and what comes back: a prompt, how to sample, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.samples.encode import EncodedImage
from pipeline.samples.prompt.text_tokenizer import Ids

FinishReason = Literal["stop", "length", "cancelled"]
"""A stop token or stop text came, `max_new_tokens` were written, or the rest was not wanted."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is chosen; the same prompt and sampling give the same answer, whatever else is in the batch."""

    max_new_tokens: int
    """Longest answer, tokens; at least 1."""
    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0 takes the most likely token."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together reach this probability; above 0, at most 1."""
    seed: int = 0
    """Of this answer's own generator."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, besides the template's own end; they are not part of it."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: a value is outside of them.
        """
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")
        if not all(self.stop):
            raise ValueError("a stop text is empty; give at least one letter")


class Prompt(NamedTuple):
    """A conversation ready to be answered."""

    input_ids: Ids
    """int64 [T], one placeholder per image."""
    images: tuple[EncodedImage, ...]
    """Image k for the k-th placeholder."""
    num_tokens: int
    """Length with its image features."""


class Reply(NamedTuple):
    """A finished answer."""

    text: str
    """Without stop texts, control tokens and white space around."""
    token_ids: tuple[int, ...]
    """All that were generated, the stop token included."""
    num_prompt_tokens: int
    finish_reason: FinishReason
