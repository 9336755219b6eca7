"""Compare an exported folder, opened by transformers alone in a process of its own, with the model it was made of.

Compared are the ids of prompts, the pixels, the number of image tokens, logits, and greedy answers; the result is
written into the folder as parity.json.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as PillowImage

from model.vision.pixels import pixel_stats_of
from pipeline.config import ConfigError
from pipeline.errors import DataError
from pipeline.samples.image import decode_image
from pipeline.samples.prompt.conversation import Image
from pipeline.tools.parity.ask import MAX_NEW_TOKENS, Asked, ask, open_rounded
from pipeline.tools.parity.compare import Comparison, compare
from pipeline.tools.parity.questions import ParityQuestion, choose_questions

PARITY_FILE = "parity.json"
_LOGITS = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Greatest difference, relative to the largest logit, by the type that is computed in."""
_CHILD = Path(__file__).with_name("transformers_child.py")


class ParityError(ValueError):
    """An exported folder does something else than the model it was made of."""


class Parity(NamedTuple):
    """What was compared."""

    against: str
    versions: dict[str, str]
    dtype: str
    """That was computed in."""
    comparisons: tuple[Comparison, ...]
    not_asked: tuple[str, ...]
    """Questions that the model cannot be asked here either, with the reason."""

    @property
    def problems(self) -> list[str]:
        """Every difference, with its question."""
        return [f"{one.name}: {problem}" for one in self.comparisons for problem in one.problems]

    @property
    def is_equal(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return bool(self.comparisons) and not self.problems

    def summary(self) -> str:
        """Return the figures in a line."""
        grey = max((one.grey_levels for one in self.comparisons if one.grey_levels is not None), default=0.0)
        logits = max((one.logits for one in self.comparisons), default=0.0)
        return (
            f"{len(self.comparisons)} questions asked through transformers {self.versions['transformers']}: equal ids, "
            f"image tokens and answers; pixels at most {grey:.2f} grey levels apart, logits {logits:.2g} "
            f"({self.dtype})"
        )


def verify_export(folder: str | Path, against: str | Path | None = None) -> Parity:
    """Compare an exported folder with the model it was made of, and write parity.json into it.

    Args:
        folder: exported.
        against: folder of a run, or a model folder; None takes the one that parity.json names.

    Raises:
        ConfigError: there is nothing to compare with.
        ParityError: transformers cannot open the folder, or they differ; parity.json says where.
    """
    exported = Path(folder)
    values = _read_config(exported)
    source = Path(against) if against is not None else _source_of(exported)
    written = getattr(torch, values["dtype"])
    computed = _computed_dtype(exported, written)
    opened = open_rounded(source, written, computed)
    image_id = int(values["image_token_index"])
    asked: list[Asked] = []
    not_asked: list[str] = []
    for question in choose_questions(source):
        try:
            asked.append(ask(opened, question, image_id))
        except DataError as error:
            not_asked.append(f"{question.name}: {error}")
    std = torch.tensor(pixel_stats_of(opened.model.config).std)
    del opened  # the process that comes needs the memory
    versions, found = _ask_transformers(exported, asked, computed)
    comparisons = [
        compare(ours, theirs, image_id, std, _LOGITS[computed]) for ours, theirs in zip(asked, found, strict=True)
    ]
    name = str(computed).removeprefix("torch.")
    parity = Parity(str(source.resolve()), versions, name, tuple(comparisons), tuple(not_asked))
    _write(parity, exported)
    if not parity.is_equal:
        reasons = "; ".join(parity.problems) or "no question could be asked"
        raise ParityError(
            f"{exported} differs from {source}, do not use it: {reasons} (all figures: {exported / PARITY_FILE})"
        )
    return parity


def _read_config(exported: Path) -> dict[str, Any]:
    file = exported / "config.json"
    if not file.is_file():
        raise ConfigError(f"{exported} has no config.json; expected a folder written by `ray-llava export`")
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "image_token_index" not in values or "dtype" not in values:
        raise ConfigError(f"{file} is not of a folder written by `ray-llava export`: no image_token_index and dtype")
    return values


def _source_of(exported: Path) -> Path:
    file = exported / PARITY_FILE
    named = json.loads(file.read_text(encoding="utf-8"))["against"] if file.is_file() else None
    if named is None or not Path(named).exists():
        raise ConfigError(
            f"{exported}: nothing to compare with ({f'{named} is not there' if named else f'no {PARITY_FILE}'}); give "
            "the run or the model folder that it was made of as --against"
        )
    return Path(named)


def _computed_dtype(exported: Path, written: torch.dtype) -> torch.dtype:
    """Return float32 where the machine has room for it, else the type of the exported weights."""
    num_weights = sum(file.stat().st_size for file in exported.glob("*.safetensors")) // written.itemsize
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.float32 if 2 * torch.float32.itemsize * num_weights < free else written


def _ask_transformers(
    exported: Path, asked: Sequence[Asked], computed: torch.dtype
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Ask the same in a process that imports transformers and nothing of ours; returns its versions and findings."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        entries = []
        for number, one in enumerate(asked):
            torch.save(one.tiles, work / f"{number}.tiles.pt")
            files = [work / f"{number}-{image}.png" for image in range(len(one.question.images))]
            for file, data in zip(files, one.question.images, strict=True):
                file.write_bytes(_as_rgb(data))
            entries.append({"messages": _messages(one.question, files), "max_new_tokens": MAX_NEW_TOKENS})
        (work / "questions.json").write_text(json.dumps(entries), encoding="utf-8")
        dtype = str(computed).removeprefix("torch.")
        command = [sys.executable, "-P", str(_CHILD), str(exported.resolve()), str(work), dtype]
        child = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if child.returncode != 0:
            lines = child.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"exit code {child.returncode}"
            raise ParityError(f"{exported} cannot be opened and asked by transformers, do not use it: {reason}")
        found = [torch.load(work / f"{number}.theirs.pt", weights_only=True) for number in range(len(asked))]
        return json.loads((work / "versions.json").read_text(encoding="utf-8")), found


def _as_rgb(data: bytes) -> bytes:
    """Return an image file as an RGB PNG, which is how the model card says to give pictures."""
    buffer = io.BytesIO()
    PillowImage.fromarray(decode_image(data)).save(buffer, "PNG")
    return buffer.getvalue()


def _messages(question: ParityQuestion, files: Sequence[Path]) -> list[dict[str, Any]]:
    remaining = iter(files)

    def as_content(part: object) -> dict[str, str]:
        if isinstance(part, Image):
            return {"type": "image", "path": str(next(remaining))}
        return {"type": "text", "text": str(part)}

    turns = question.conversation.turns
    return [{"role": turn.role, "content": [as_content(part) for part in turn.parts]} for turn in turns]


def _write(parity: Parity, exported: Path) -> None:
    questions = [one._asdict() | {"image_tokens": list(one.image_tokens)} for one in parity.comparisons]
    values = {
        "verdict": "equal" if parity.is_equal else "differs",
        "against": parity.against,
        "versions": parity.versions,
        "computed_in": parity.dtype,
        "not_asked": parity.not_asked,
        "questions": questions,
    }
    (exported / PARITY_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
