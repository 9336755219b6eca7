"""What would not be the same prompt in an exported folder is refused before the run, with the tokens that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from model.hub.tokenizer_files import read_tokenizer
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.served_prompt import check_served, served_tokenizer
from pipeline.samples.prompt.templates import Template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from tests.pipeline.samples.prompt.published_tokenizers import LAYOUTS

ENDS_IN_A_SPACE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)


def parts(
    layout: str, folder: Path, source: str | None, name: str
) -> tuple[PreTrainedTokenizerFast, Template | JinjaTemplate]:
    tokenizer = read_tokenizer(str(LAYOUTS[layout](folder)))
    if source is not None:
        tokenizer.chat_template = source
    return tokenizer, choose_template(name, tokenizer)


def test_prompt_whose_last_token_the_answer_changes_is_refused(tmp_path: Path) -> None:
    tokenizer, template = parts("llama_2", tmp_path, ENDS_IN_A_SPACE, "tokenizer")
    with pytest.raises(
        ValueError, match=r"an answer is learnt after another prompt than it is asked with: expected '.*'"
    ):
        check_served(tokenizer, template, TextTokenizer(tokenizer, adds_bos=False))


def test_prompt_that_an_exported_folder_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    """Training with BOS where the template, which the export follows, writes none."""
    tokenizer, template = parts(
        "llama_2", tmp_path, ENDS_IN_A_SPACE.replace("'<s>assistant '", "'<s>assistant'"), "tokenizer"
    )
    check_served(tokenizer, template, TextTokenizer(tokenizer, adds_bos=False))
    with pytest.raises(
        ValueError, match=r"an exported model would be asked with other tokens: expected '<s> <s> .*' at token 1"
    ):
        check_served(tokenizer, template, TextTokenizer(tokenizer))


def test_exported_tokenizer_ends_where_the_template_ends_and_leaves_the_other_alone(tmp_path: Path) -> None:
    tokenizer, template = parts("added_tokens", tmp_path, None, "qwen")
    before = (tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token, tokenizer.chat_template)
    served = served_tokenizer(tokenizer, template)
    assert (served.eos_token, served.pad_token, served.padding_side) == ("<|im_end|>", "<unk>", "left")
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token, tokenizer.chat_template) == before
    image = served.added_tokens_decoder[served.convert_tokens_to_ids("<image>")]  # type: ignore[index]
    assert (image.rstrip, image.special, image.normalized) == (False, True, False)  # published with rstrip
    assert len(served) == len(tokenizer)
