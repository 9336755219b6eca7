"""How a generated answer ends: at the template's own end, not only at the token that the tokenizer calls its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Ending(NamedTuple):
    """What ends an answer."""

    token_ids: tuple[int, ...]
    """Any of these tokens."""
    text: str
    """Or this text, where the template ends answers with ordinary letters; empty for none."""

    def generation_options(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return the keywords of `generate` that stop there."""
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.token_ids), 0)
        options: dict[str, Any] = {"eos_token_id": list(self.token_ids) or None, "pad_token_id": pad_id}
        return options | ({"stop_strings": [self.text], "tokenizer": tokenizer} if self.text else {})

    def read_answer(self, tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
        """Spell generated ids [T] up to the end, without white space around."""
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return (text.partition(self.text)[0] if self.text else text).strip()


def ending_of(template: Template | JinjaTemplate, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """Find what ends an answer: what the model was taught to write after it, or the tokenizer's end.

    Raises:
        ValueError: neither the template nor the tokenizer has an end.
    """
    names = [template.end_of_answer] if template.end_of_answer else []
    ids: list[int] = list(tokenizer.convert_tokens_to_ids(names))  # type: ignore[arg-type]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    suffix = template.answer_suffix if isinstance(template, Template) and not names else ""
    if not ids and not suffix:
        raise ValueError(f"template {template.name!r} ends answers with no token, and the tokenizer has no eos_token")
    return Ending(tuple(ids), suffix)
