"""`ray-llava merge`: fold the adapters of a LoRA finetuning into its language model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import output_console
from jobs.model_place import folder_here

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", parser=folder_here, help="Folder or URL of a finished LoRA run, or its model folder."
    ),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write; must be empty or not exist.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the written weights.")]


def run(model: Model, target: Target, dtype: Dtype = "bfloat16") -> None:
    """Write a model finetuned with adapters as a whole model folder, which needs neither peft nor its base."""
    import torch

    from pipeline.assembly.merge import merge_model

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    merge_model(model, target, types[dtype])
    output_console().print(f"merged: {target}", soft_wrap=True)
