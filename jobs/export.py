"""`ray-llava export`: write a trained model as a folder that transformers and vLLM open."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import output_console
from jobs.model_place import folder_here

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", parser=folder_here, help="Folder or URL of a finished finetuning run, or a model folder."
    ),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write; must be empty or not exist.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the written weights.")]


Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Ask the folder through transformers and compare; see `verify`.")
]


Format = Annotated[
    Literal["transformers", "gguf"],
    typer.Option("--format", help="Folder for transformers and vLLM, or two GGUF files for llama.cpp."),
]


def run(
    model: Model, target: Target, dtype: Dtype = "bfloat16", check: Check = True, kind: Format = "transformers"
) -> None:
    """Export a finetuned model for transformers and vLLM, with processor, chat template and model card.

    Ends with the check of `ray-llava verify`; an export that differs ends with 4. GGUF files are read back instead,
    tensor by tensor.
    """
    if kind == "gguf":
        _export_gguf(model, target, dtype)
        return
    import torch

    from pipeline.assembly.export import export_model

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    export_model(model, target, types[dtype])
    console = output_console()
    if check:
        from pipeline.tools.parity.check import verify_export

        console.print(verify_export(target, model).summary(), soft_wrap=True, highlight=False)
    from pipeline.tracking.exported import record_export

    if told := record_export(model, target, {"dtype": dtype, "checked": str(check).lower()}):
        console.print(told, soft_wrap=True, highlight=False)
    console.print(f"exported: {target}{'' if check else ' (not checked)'}", soft_wrap=True)


def _export_gguf(model: Path, target: Path, dtype: str) -> None:
    from pipeline.assembly.gguf_export import export_gguf

    written, console = export_gguf(model, target, dtype), output_console()
    for note in written.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    console.print(f"{written.num_tensors} tensors read back equal", soft_wrap=True, highlight=False)
    console.print(f"exported: {target}", soft_wrap=True)
