"""One prompt: training, generate, the saved tokenizer and the exported processor give the same ids or refuse the run.

Every tokenizer layout with every template. `pytest -s` prints the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from PIL import Image as PilImage
from transformers import AutoProcessor, AutoTokenizer

from model.fusion.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from model.hub.tokenizer_files import read_tokenizer, write_tokenizer
from pipeline.errors import DataError
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.rendering import choose_template, render_conversation, render_question
from pipeline.samples.prompt.served_prompt import check_served, served_tokenizer
from pipeline.samples.prompt.templates import TEMPLATES, Template
from pipeline.samples.prompt.text_tokenizer import TextTokenizer
from pipeline.samples.prompt.tokenization import encode_prompt, encode_text
from tests.pipeline.samples.prompt.published_tokenizers import LAYOUTS

NUM_FEATURES: Final = 9
LLAMA: Final = ("plain", "v0", "v1", "llama_2", "mistral_instruct")
CHATML: Final = ("mpt", "chatml", "qwen")
EQUAL: Final = {
    "llama_2": (*LLAMA, "tokenizer"),
    "vicuna_1.3": LLAMA,
    "yi": LLAMA,
    "llama_adds_eos": LLAMA,
    "llama_no_prefix": LLAMA,
    "vicuna_1.5_json": LLAMA,
    "vicuna_1.3_json": LLAMA,
    "mistral": (*LLAMA, "tokenizer"),
    "mistral_model": (*LLAMA, "tokenizer"),
    "phi_3": (*LLAMA, "phi", "tokenizer"),
    "added_tokens": (*LLAMA, *CHATML, "tokenizer"),
    "gemma": ("plain", "v0", "gemma", "tokenizer"),
    "llama_3": ("plain", "v0", "llama_3", "tokenizer"),
    "qwen_2.5": ("plain", "v0", *CHATML, "tokenizer"),
    "qwen_3": ("plain", "v0", *CHATML, "tokenizer"),
    "smollm_2": ("plain", "v0", *CHATML, "tokenizer"),
    "smollm_3": ("plain", "v0", *CHATML, "tokenizer"),
    "gpt_prefix_space": (*LLAMA, *CHATML, "tokenizer"),
}
"""Templates whose prompts are equal everywhere; every other one is refused by name."""


class Prompts(NamedTuple):
    """What one place makes of a conversation."""

    asked: list[int]
    learnt: list[int]


def talk(*contents: tuple[Part, ...], system: str | None = None) -> Conversation:
    turns = [Turn("assistant" if idx % 2 else "user", parts) for idx, parts in enumerate(contents)]
    return Conversation((*([] if system is None else [Turn("system", (system,))]), *turns))


TALKS: Final = (
    talk((Image(), "What colour is the ball? [loc]"), ("The ball is red.",)),
    talk(("Is there a ball, 12 or 3.5?",), ("Yes.\nThere is\u00e9.",)),
    talk(("First ", Image(), "then ", Image(), "\nsame?"), ("no",), ("sure? ",), ("Yes, I am.",)),
    talk((Image(), Image()), ("two cubes",), system="Be brief."),
    talk(("left of\n", Image()), ("a green triangle",)),
)


def train_and_generate(conversation: Conversation, template: Template | JinjaTemplate, tokenizer: Any) -> Prompts:
    wrapped = TextTokenizer(tokenizer, adds_bos=not isinstance(template, JinjaTemplate))
    learnt = encode_text(render_conversation(conversation, template), wrapped, None, NUM_FEATURES).input_ids
    asked = encode_prompt(render_question(Conversation(conversation.turns[:-1]), template), wrapped)
    return Prompts(asked.tolist(), learnt.tolist())


def export(tokenizer: Any, template: Template | JinjaTemplate, folder: Path) -> Any:
    """Write what an exported folder holds for its processor, and open it with transformers."""
    write_tokenizer(served_tokenizer(tokenizer, template), folder)
    size = {"height": 21, "width": 21}
    images = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 21}, "crop_size": size}
    prompt = {"processor_class": "LlavaProcessor", "patch_size": 7, "num_additional_image_tokens": 1}
    prompt |= {"vision_feature_select_strategy": "default", "image_token": DEFAULT_IMAGE_TOKEN}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps(prompt))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["L"]}))
    return AutoProcessor.from_pretrained(folder, backend="pil")


def by_processor(processor: Any, conversation: Conversation, **options: Any) -> Prompts:
    picture = PilImage.new("RGB", (21, 21))
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": picture} if isinstance(part, Image) else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in conversation.turns
    ]

    def ids(listed: list[dict[str, Any]], prompt: bool) -> list[int]:
        made = processor.apply_chat_template(
            listed, add_generation_prompt=prompt, tokenize=True, return_dict=True, **options
        )
        found: list[int] = made["input_ids"][0]
        if not options:  # the older way, in two steps, which lets the tokenizer add what it adds
            text = processor.apply_chat_template(listed, add_generation_prompt=prompt, tokenize=False)
            images = [picture for message in listed for part in message["content"] if part["type"] == "image"]
            assert processor(text=text, images=images or None)["input_ids"][0] == found
        return found

    return Prompts(ids(messages[:-1], True), ids(messages, False))


def expanded(prompts: Prompts, image_id: int) -> Prompts:
    def expand(ids: list[int]) -> list[int]:
        return [t for i in ids for t in ([image_id] * NUM_FEATURES if i == IMAGE_TOKEN_INDEX else [i])]

    return Prompts(expand(prompts.asked), expand(prompts.learnt))


def compare(folder: Path, name: str, target: Path) -> int:
    """Assert that all places agree; returns how many conversations the template takes.

    Raises:
        ValueError: the run would be refused.
    """
    tokenizer = read_tokenizer(str(folder))
    template = choose_template(name, tokenizer)
    wrapped = TextTokenizer(tokenizer, adds_bos=not isinstance(template, JinjaTemplate))
    wrapped.check_control_tokens(template.controls, template.name)
    check_served(tokenizer, template, wrapped)
    tokenizer.chat_template = template.source if isinstance(template, JinjaTemplate) else None
    write_tokenizer(tokenizer, target / "saved")
    (target / "saved" / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    saved = read_tokenizer(str(target / "saved"))
    processor = export(tokenizer, template, target / "exported")
    image_id = processor.tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    taken = 0
    for conversation in TALKS:
        try:
            ours = train_and_generate(conversation, template, tokenizer)
        except DataError:
            continue
        assert ours.learnt[: len(ours.asked)] == ours.asked
        assert train_and_generate(conversation, choose_template(name, saved), saved) == ours
        assert by_processor(processor, conversation) == expanded(ours, image_id)
        taken += 1
    return taken


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_template_gives_one_prompt_or_is_refused_by_name(layout: str, tmp_path: Path) -> None:
    (folder := tmp_path / "published").mkdir()
    LAYOUTS[layout](folder)
    equal, refused = {}, {}
    for name in (*TEMPLATES, "tokenizer"):
        try:
            equal[name] = compare(folder, name, tmp_path / name)
        except ValueError as error:
            refused[name] = str(error)
    print(f"\n{layout}: equal {equal}, refused by name {sorted(refused)}")
    assert tuple(name for name in (*TEMPLATES, "tokenizer") if name in equal) == EQUAL[layout]
    assert all(equal.values())
    expected = {name: "has no chat template" if name == "tokenizer" else f"template '{name}' needs" for name in refused}
    assert [name for name, message in refused.items() if expected[name] not in message] == []


@pytest.mark.parametrize("layout", ["llama_2", "phi_3", "mistral", "gemma", "qwen_2.5", "smollm_2"])
def test_text_with_the_tokenizers_own_template_gets_the_ids_of_the_published_folder(
    layout: str, tmp_path: Path
) -> None:
    """The folder as transformers opens it is the authority for conversations without images."""
    published: Any = AutoTokenizer.from_pretrained(LAYOUTS[layout](tmp_path))
    tokenizer = read_tokenizer(str(tmp_path))
    template = choose_template("tokenizer", tokenizer)
    messages = [{"role": turn.role, "content": turn.text} for turn in TALKS[1].turns]
    expected = published.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert train_and_generate(TALKS[1], template, tokenizer).asked == expected


@pytest.mark.parametrize(("layout", "name"), [("qwen_2.5", "qwen"), ("llama_2", "v1"), ("phi_3", "tokenizer")])
def test_control_tokens_in_what_people_say_stay_text_if_the_caller_asks_for_it(
    layout: str, name: str, tmp_path: Path
) -> None:
    (folder := tmp_path / "published").mkdir()
    tokenizer = read_tokenizer(str(LAYOUTS[layout](folder)))
    template = choose_template(name, tokenizer)
    processor = export(tokenizer, template, tmp_path / "exported")
    conversation = talk((Image(), "Is </s> or <|im_end|>\nor <|end|> an end?"), ("no </s>, none",))
    ours = expanded(
        train_and_generate(conversation, template, tokenizer),
        processor.tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
    )
    assert by_processor(processor, conversation, sanitize_control_tokens=True) == ours
    assert by_processor(processor, conversation) != ours
