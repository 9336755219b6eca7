"""`ray-llava generate`: ask a trained model about images, encoded exactly as in training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import output_console
from jobs.model_place import folder_here
from pipeline.config import ConfigError, load_config

if TYPE_CHECKING:  # torch takes seconds to load; usage errors need not wait for it
    from transformers import PreTrainedTokenizerBase

    from pipeline.assembly.folder import OpenedModel
    from pipeline.samples.prompt.conversation import Conversation

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", parser=folder_here, help="Folder or URL of a finished run, or a model folder."),
]
Question = Annotated[
    str, typer.Argument(help="What to ask; `<image>` marks where an image belongs, else all come first.")
]
Images = Annotated[
    list[Path] | None, typer.Option("--image", "-i", help="Image file, once for each image in reading order.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


def run(
    model: Model,
    question: Question,
    image: Images = None,
    max_new_tokens: MaxNewTokens = 128,
    device: Device = "cpu",
) -> None:
    """Answer a question about images; greedy, so that the same question has the same answer."""
    images = [_read_image(path) for path in image or []]
    conversation = build_conversation(question, len(images))

    from pipeline.assembly.facts import load_tokenizer
    from pipeline.assembly.folder import open_model

    opened = open_model(model, device)
    text = answer(opened, load_tokenizer(tokenizer_source(model)), conversation, images, max_new_tokens)
    output_console().print(text, markup=False, highlight=False, soft_wrap=True)


def build_conversation(question: str, num_images: int) -> "Conversation":
    """Return the user's turn; without placeholders all images come before the text.

    Raises:
        ConfigError: the placeholders do not match the images.
    """
    from pipeline.samples.prompt.conversation import Conversation, Image, Turn, split_placeholders

    parts = split_placeholders(question)
    num_places = sum(isinstance(part, Image) for part in parts)
    if num_places == 0:
        parts = (*(Image() for _ in range(num_images)), *parts)
    elif num_places != num_images:
        raise ConfigError(
            f"the question has {num_places} <image> but {num_images} --image were given; give one image for each "
            "<image>, or leave <image> out to put all images first"
        )
    return Conversation((Turn("user", parts),))


def answer(
    opened: "OpenedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversation: "Conversation",
    images: list[bytes],
    max_new_tokens: int,
) -> str:
    """Generate the assistant's turn greedily.

    Args:
        opened: The model and its encoder.
        tokenizer: Spells the answer.
        conversation: Ends with the user's turn.
        images: Encoded image files in reading order.
        max_new_tokens: Longest answer, tokens.

    Raises:
        DataError: an image cannot be decoded, or the prompt is longer than a training sample can be.
    """
    from pipeline.generation.generator import Generator
    from pipeline.generation.requests import Sampling

    generator = Generator(opened, tokenizer)
    prompt = generator.prepare(conversation, images)
    return generator.generate([prompt], [Sampling(max_new_tokens)])[0].text


def tokenizer_source(model: Path) -> str:
    """Return the folder or hub id of the tokenizer of what `open_model` opens."""
    if not (model / "config.yaml").is_file():
        return str(model)
    config = load_config(model / "config.yaml")
    return str(model / "model") if config.stage == "finetune" else config.model.language_model


def _read_image(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigError(f"--image {path}: no such file")
    return path.read_bytes()
