"""A tokenizer's own Jinja chat template as a conversation template; supervised text is found by rendering.

A conversation is rendered once with every piece of content replaced by one private character, so that everything the
template itself writes is known to the letter, and once as it is, to make sure that the template only puts text around
contents (or trims them). A template that does anything else to a conversation is refused rather than guessed at.

What a template takes from the day or from the caller (date, thinking) is pinned in its source, see `pinned_source`, so
that the exported template writes what was trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from pipeline.errors import DataError, Reason
from pipeline.samples.prompt.conversation import (
    Conversation,
    Image,
    Part,
    Span,
    Turn,
    cut_at_controls,
    image_spans,
    merge_spans,
    place_images,
)
from pipeline.samples.prompt.pinned_source import pin_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRIVATE = 0xF0000  # first of 65534 code points that no text standard gives a meaning
_TRIMS = [frozenset(roles) for n in range(4) for roles in itertools.combinations(("user", "assistant", "system"), n)]
"""Roles whose contents a template may strip of white space, fewest first."""


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja template with what it is given besides messages."""

    source: str
    """With date and thinking pinned."""
    variables: tuple[tuple[str, str], ...]
    """Names and texts of the tokenizer's special tokens (`bos_token`, ...)."""
    control_tokens: tuple[str, ...]
    """All tokens that are special to the tokenizer."""
    end_of_answer: str = ""
    """Control token after an answer."""
    around_image: tuple[str, str] = ("", "")
    """Control tokens before and after every image; empty for none."""
    name: str = "tokenizer"

    @property
    def controls(self) -> set[str]:
        """Control tokens that must exist in the tokenizer beyond its own."""
        return {token for token in (self.end_of_answer, *self.around_image) if token}


class _Rendered(NamedTuple):
    """A conversation rendered with its contents marked."""

    literals: list[str]
    """What the template writes before, between and after the contents."""
    text: str
    """The whole, contents as single characters."""
    learnt: list[tuple[int, int]]
    """Begin and end in `text` of what the template tags as generated."""


def read_jinja_template(tokenizer: PreTrainedTokenizerBase) -> JinjaTemplate:
    """Take a tokenizer's chat template, and find out on a short conversation how it ends answers.

    Raises:
        ValueError: there is none, or answers cannot be told apart in what it renders.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"data.template is 'tokenizer', but {tokenizer.name_or_path or 'the tokenizer'} has no chat template; name "
            "one of the built-in templates"
        )
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    variables = tuple((name, str(text)) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str))
    template = JinjaTemplate(pin_source(tokenizer.get_chat_template()), variables, tuple(special))
    probe = Conversation((Turn("user", ("q",)), Turn("assistant", ("a",))))
    try:
        spans = render_jinja(probe, template)
    except DataError as error:
        raise ValueError(f"the tokenizer's chat template cannot be trained with: {error.what}") from error
    ends = [span.text for span in spans if span.kind == "special" and span.supervised]
    return JinjaTemplate(template.source, variables, template.control_tokens, end_of_answer=ends[-1])


def render_jinja(conversation: Conversation, template: JinjaTemplate) -> list[Span]:
    """Render a complete conversation for training.

    Supervised is what `{% generation %}` tags enclose; without tags, all that follows the generation prompt up to
    the first control token after the answer. Of both, only what `render_jinja_prompt` does not already give.

    Raises:
        DataError: the template refuses or rewrites the conversation, asks for an answer in other words than those
            before it, puts words of its own into an answer, or leaves unclear where an answer ends.
    """
    turns = _placed(conversation)
    rendered = _render_marked(turns, template, prompt=False)
    answers = [idx for idx, turn in enumerate(turns) if turn.role == "assistant"]
    said = [_find_answer(idx, turns, rendered, template) for idx in answers]
    learnt = _after_prompts(rendered.learnt, said) if rendered.learnt else said
    _check_learnt(turns, rendered, learnt)
    spans = _spans(rendered, _contents_as_rendered(turns, rendered, template, prompt=False), learnt, template)
    taught = sum(span.kind == "special" and span.supervised for span in spans)
    if taught < len(answers):
        raise _refusal("it tags answers without a control token at their end, so generation would not stop")
    return spans


def render_jinja_prompt(conversation: Conversation, template: JinjaTemplate) -> list[Span]:
    """Render a conversation that ends with the user's turn up to where the assistant's answer begins.

    Raises:
        ValueError: the last turn is not the user's.
        DataError: the template refuses or rewrites the conversation.
    """
    if not conversation.turns or conversation.turns[-1].role != "user":
        raise ValueError("a prompt ends with the user's turn; found an assistant turn or none at the end")
    turns = _placed(conversation)
    rendered = _render_marked(turns, template, prompt=True)
    contents = _contents_as_rendered(turns, rendered, template, prompt=True)
    return _spans(rendered, contents, [], template)


def _placed(conversation: Conversation) -> list[Turn]:
    return [
        Turn(turn.role, place_images(turn.parts) if turn.role == "user" else turn.parts) for turn in conversation.turns
    ]


def _render_marked(turns: Sequence[Turn], template: JinjaTemplate, *, prompt: bool) -> _Rendered:
    marks = iter(chr(_PRIVATE + number) for number in range(65534))
    contents = ["".join(next(marks) for _ in turn.parts) for turn in turns]
    text, learnt = _run(turns, contents, template, prompt=prompt)
    literals, rest = [], text
    for mark in "".join(contents):
        before, found, rest = rest.partition(mark)
        literals.append(before)
        if not found or mark in rest:
            raise _refusal("it drops, repeats or reorders what was said")
    return _Rendered([*literals, rest], text, learnt)


def _find_answer(idx: int, turns: Sequence[Turn], rendered: _Rendered, template: JinjaTemplate) -> tuple[int, int]:
    """Return begin and end, in the marked text, of what the model says in turn `idx`."""
    asked = _render_marked(turns[:idx], template, prompt=True).text
    answer = sum(turn.role == "assistant" for turn in turns[: idx + 1])
    num_before = sum(len(turn.parts) for turn in turns[:idx])
    num_after = num_before + len(turns[idx].parts)
    content_begin = sum(len(literal) + 1 for literal in rendered.literals[:num_before]) + len(
        rendered.literals[num_before]
    )
    if not rendered.text.startswith(asked) or len(asked) > content_begin:
        raise _refusal(
            f"its prompt for answer {answer} is not what precedes that answer in the finished conversation, as with "
            "templates that write thinking into the last answer only"
        )
    begin_of_rest = sum(len(literal) + 1 for literal in rendered.literals[:num_after])
    after = rendered.literals[num_after]
    ends = [(after.index(token), token) for token in template.control_tokens if token in after]
    if not ends:
        raise _refusal("no control token follows an answer, so generation would not stop")
    end, token = min(ends)
    for added in (rendered.text[len(asked) : content_begin], after[:end]):
        if added.strip():
            raise _refusal(f"it makes {added.strip()!r} part of an answer, which the model would then generate")
    return len(asked), begin_of_rest + end + len(token)


def _after_prompts(tagged: Sequence[tuple[int, int]], said: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out of what is tagged the end of a prompt, such as the header of the assistant's turn."""
    return [(max([begin, *(asked for asked, _ in said if asked < end)]), end) for begin, end in tagged]


def _spans(
    rendered: _Rendered, contents: Sequence[Part], learnt: Sequence[tuple[int, int]], template: JinjaTemplate
) -> list[Span]:
    spans: list[Span] = []
    position = 0
    for literal, part in itertools.zip_longest(rendered.literals, contents):
        for piece in cut_at_controls(literal, template.control_tokens):
            spans += _marked(piece, position, learnt)
            position += len(piece.text)
        if isinstance(part, Image):
            spans += image_spans(template.around_image)
        elif part is not None:
            spans.append(Span("text", part, _is_learnt(position, learnt)))
        position += 1
    return merge_spans(spans)


def _check_learnt(turns: Sequence[Turn], rendered: _Rendered, learnt: Sequence[tuple[int, int]]) -> None:
    """Refuse what leaves an answer out, or takes in what somebody else says."""
    position = -1
    literals = iter(rendered.literals)
    for turn in turns:
        for _ in turn.parts:
            position += len(next(literals)) + 1
            if _is_learnt(position, learnt) != (turn.role == "assistant"):
                raise _refusal(f"it tags what the {turn.role} says wrongly as generated, or as not generated")


def _contents_as_rendered(
    turns: Sequence[Turn], rendered: _Rendered, template: JinjaTemplate, *, prompt: bool
) -> list[Part]:
    """Return the parts of all turns as the template writes them: as they are, or trimmed for some roles."""
    image = next(mark for mark in map(chr, range(_PRIVATE, _PRIVATE + 65534)) if not _is_in(mark, turns))
    contents = ["".join(image if isinstance(part, Image) else part for part in turn.parts) for turn in turns]
    actual, _ = _run(turns, contents, template, prompt=prompt)
    for roles in _TRIMS:
        parts = [part for turn in turns for part in (_trim(turn.parts) if turn.role in roles else turn.parts)]
        texts = [image if isinstance(part, Image) else part for part in parts]
        written = "".join(text for pair in zip(rendered.literals, [*texts, ""], strict=True) for text in pair)
        if written == actual:
            return parts
    raise _refusal("it rewrites what was said")


def _run(
    turns: Sequence[Turn], contents: Sequence[str], template: JinjaTemplate, *, prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)]
    try:
        text, learnt = _render_with_assistant_indices(
            _compile_jinja_template(template.source),
            messages,
            None,
            None,
            prompt,
            **dict(template.variables),
        )
    except TemplateError as error:
        raise _refusal(f"it says: {error}") from error
    return text, [(begin, end) for begin, end in learnt if end > begin]


def _marked(piece: Span, begin: int, learnt: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """Cut what the template writes where learning begins or ends; a control token is never cut."""
    if piece.kind == "special":
        yield piece._replace(supervised=_is_learnt(begin, learnt))
        return
    for idx, letter in enumerate(piece.text):
        yield Span("text", letter, _is_learnt(begin + idx, learnt))


def _is_learnt(position: int, learnt: Sequence[tuple[int, int]]) -> bool:
    return any(begin <= position < end for begin, end in learnt)


def _trim(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Strip the ends of a turn, across neighbouring texts."""
    trimmed = list(parts)
    for order, strip in ((range(len(parts)), str.lstrip), (range(len(parts) - 1, -1, -1), str.rstrip)):
        for idx in order:
            part = trimmed[idx]
            if isinstance(part, Image):
                break
            trimmed[idx] = strip(part)
            if trimmed[idx]:
                break
    return tuple(trimmed)


def _is_in(mark: str, turns: Sequence[Turn]) -> bool:
    return any(mark in turn.text for turn in turns)


def _refusal(what: str) -> DataError:
    return DataError(Reason.TEMPLATE_REFUSED, f"the tokenizer's chat template does not suit this conversation: {what}")
