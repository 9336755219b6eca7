"""Conversations: from turns and a template to a prompt in pieces, each marked as supervised or not.

`render` is a pure function. Because every piece knows whether it is supervised, label masks never have to be recovered
by tokenizing a finished prompt a second time. Templates are data, in `templates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.samples.prompt.templates import Template

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Image:
    """Place of the next image of the sample; the k-th one in reading order shows image k."""


Part = str | Image


class Turn(NamedTuple):
    """What one side says: text and images in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The turn without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))


class Conversation(NamedTuple):
    """An optional system turn, then user and assistant turns in alternation."""

    turns: tuple[Turn, ...]

    @property
    def num_images(self) -> int:
        """Image places in all turns."""
        return sum(isinstance(part, Image) for turn in self.turns for part in turn.parts)


class Span(NamedTuple):
    """A piece of a prompt."""

    kind: Literal["text", "special", "image"]
    """`special` is a control token spelled by the template; the same letters in `text` stay letters."""
    text: str
    """Empty for an image."""
    supervised: bool
    """Whether the model learns to produce it."""


def split_placeholders(text: str) -> tuple[Part, ...]:
    """Split LLaVA text at `<image>` into text and image places."""
    parts: list[Part] = []
    for idx, piece in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
        if idx:
            parts.append(Image())
        if piece:
            parts.append(piece)
    return tuple(parts)


def place_images(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Move the only image of a turn to its front, on a line of its own; several images stay where they are.

    LLaVA's rule for one image; with several, their place tells "first image: ..., second image: ..." apart.
    """
    if sum(isinstance(part, Image) for part in parts) != 1:
        return parts
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    return (Image(), "\n" + text) if text else (Image(),)


def render(conversation: Conversation, template: Template) -> list[Span]:
    """Render a complete conversation for training; adjacent pieces of the same kind are merged."""
    system, turns = _split_system(conversation, template)
    spans = [] if template.system_inside_user else system
    for idx, turn in enumerate(turns):
        if turn.role == "assistant":
            spans += _assistant(turn, template)
            continue
        spans += _literal(template.before_next_user if idx else "", template)
        spans += _literal(template.before_user, template)
        spans += system if template.system_inside_user and idx == 0 else []
        spans += _user_content(turn, template)
        spans += _literal(template.after_user, template)
    return merge_spans(spans)


def render_prompt(conversation: Conversation, template: Template) -> list[Span]:
    """Render a conversation that ends with the user's turn up to where the assistant's answer begins.

    Raises:
        ValueError: the last turn is not the user's.
    """
    if not conversation.turns or conversation.turns[-1].role != "user":
        raise ValueError("a prompt ends with the user's turn; found an assistant turn or none at the end")
    spans = render(conversation, template)
    return merge_spans(spans + _literal(template.before_assistant, template))


def _split_system(conversation: Conversation, template: Template) -> tuple[list[Span], tuple[Turn, ...]]:
    """Return the rendered system text and the turns after it."""
    turns = conversation.turns
    own = bool(turns) and turns[0].role == "system"
    text = turns[0].text if own and template.keeps_user_text else template.system
    if text:
        before, after = _literal(template.before_system, template), _literal(template.after_system, template)
        return [*before, Span("text", text, False), *after], turns[own:]
    return [], turns[own:]


def _user_content(turn: Turn, template: Template) -> list[Span]:
    parts = place_images(turn.parts)
    if not template.keeps_user_text:
        parts = tuple(part for part in parts if isinstance(part, Image))
    return [span for part in parts for span in _content(part, template, supervised=False)]


def _assistant(turn: Turn, template: Template) -> list[Span]:
    spans = _literal(template.before_assistant, template)
    spans.append(Span("text", template.answer_prefix, True))
    spans += [span for part in turn.parts for span in _content(part, template, supervised=True)]
    spans.append(Span("text", template.answer_suffix, True))
    spans.append(Span("special", template.end_of_answer, True))
    return spans + _literal(template.after_answer, template)


def _content(part: Part, template: Template, *, supervised: bool) -> list[Span]:
    return image_spans(template.around_image) if isinstance(part, Image) else [Span("text", part, supervised)]


def image_spans(around: tuple[str, str]) -> list[Span]:
    """Return an image between its two control tokens, if it has any; none of them is supervised."""
    before, after = around
    return [
        *([Span("special", before, False)] if before else []),
        Span("image", "", False),
        *([Span("special", after, False)] if after else []),
    ]


def _literal(text: str, template: Template) -> list[Span]:
    return cut_at_controls(text, template.control_tokens)


def cut_at_controls(text: str, control_tokens: Sequence[str]) -> list[Span]:
    """Cut what a template writes at the control tokens it spells; the longest where several begin."""
    spans: list[Span] = []
    while text:
        found = [(text.index(token), -len(token), token) for token in control_tokens if token in text]
        start, _, token = min(found, default=(len(text), 0, ""))
        spans += [Span("text", text[:start], False), Span("special", token, False)]
        text = text[start + len(token) :]
    return spans


def merge_spans(spans: Sequence[Span]) -> list[Span]:
    """Drop empty pieces and join neighbouring text of equal supervision."""
    merged: list[Span] = []
    for span in spans:
        if span.kind != "image" and not span.text:
            continue
        last = merged[-1] if merged else None
        if last is not None and span.kind == last.kind == "text" and span.supervised == last.supervised:
            merged[-1] = last._replace(text=last.text + span.text)
        else:
            merged.append(span)
    return merged
