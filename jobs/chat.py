"""`ray-llava chat`: talk to a trained model, on a web page or at the terminal."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import output_console
from pipeline.config import ConfigError

Model = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Run, checkpoint of a run, model folder, adapters, or exported folder.")
]
Terminal = Annotated[bool, typer.Option("--terminal", help="Talk here instead of on a page.")]
Host = Annotated[str, typer.Option(help="Address to listen on; another one than loopback needs RAY_LLAVA_API_KEY.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")]
Examples = Annotated[
    list[str] | None,
    typer.Option("--examples", metavar="SHARDS", help="Held-out shards to try; default: those the run evaluates on."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer at the terminal, tokens.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="At the terminal; 0 takes the most likely token.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1, help="At the terminal: draw among the most likely tokens.")]
Seed = Annotated[int, typer.Option(help="At the terminal, with a temperature.")]


def run(
    folder: Model,
    terminal: Terminal = False,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    device: Device = None,
    examples: Examples = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk to a model about pictures: on a page that it prints the address of, or with --terminal."""
    from pipeline.serving.options import KEY_VARIABLE, ServedModel, ServeOptions

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a run, a checkpoint of one, or a model folder")
    path = folder.resolve()
    key = os.environ.get(KEY_VARIABLE) or None
    options = ServeOptions((ServedModel(path.name, str(path)),), host=host, port=port, api_key=key)
    console = output_console()
    from pipeline.serving.chat import open_page, open_replica  # only now: they load torch

    if not terminal:
        open_page(
            options,
            examples or (),
            device or _best_device(),
            lambda address: console.print(f"chat with {path.name}: {address}", soft_wrap=True),
        )
        return
    from pipeline.generation.requests import Sampling
    from pipeline.serving.terminal import TerminalChat

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    TerminalChat(open_replica(options, device or _best_device()), path.name, sampling, write).run(lambda: input("> "))


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
