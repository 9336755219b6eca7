"""`ray-llava import`: make a published LLaVA model a folder that finetuning goes on from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import output_console

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Original LLaVA checkpoint, or folder of a transformers LLaVA class.")
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write; must be empty or not exist.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the written weights.")]
TemplateName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Template that it was trained with; default: the tokenizer's own, else v1."),
]
Tower = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Vision tower in place of the one that an original checkpoint names."),
]


def run(
    source: Source,
    target: Target,
    dtype: Dtype = "bfloat16",
    template: TemplateName = None,
    vision_tower: Tower = None,
) -> None:
    """Import a published LLaVA model: LLaVA 1.0, 1.5, 1.6, NeXT, OneVision, or transformers' LLaVA classes."""
    import torch

    from pipeline.assembly.import_folder import import_model

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = import_model(source, target, types[dtype], template=template, vision_tower=vision_tower)
    console = output_console()
    console.print(f"imported: {found.folder}, from {found.kind}", soft_wrap=True, highlight=False)
    console.print(
        f"to train on: model.language_model={found.folder} model.vision_tower=null data.template={found.template} "
        f"data.image_aspect_ratio={found.image_aspect_ratio} model.mm_patch_merge_type={found.patch_merge}",
        soft_wrap=True,
        highlight=False,
    )
