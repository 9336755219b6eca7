"""`ray-llava verify`: whether an exported folder gives the same results in transformers as its model gives here."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import output_console

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder written by `ray-llava export`.")]
Against = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Run or model folder; default: the one that parity.json names.")
]


def run(folder: Folder, against: Against = None) -> None:
    """Run an exported folder in plain transformers and compare ids, pixels, logits, answers. Exit 4: they differ."""
    from pipeline.tools.parity.check import verify_export

    parity = verify_export(folder, against)
    output_console().print(f"{folder}: {parity.summary()}", soft_wrap=True, highlight=False)
