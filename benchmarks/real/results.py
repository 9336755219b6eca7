"""What was reached, as a table, and a sheet of held-out pictures with right and wrong answers."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from benchmarks.real.shards import HELD_OUT

_KINDS: Final = ("class", "background")
_CELL, _PICTURE, _COLUMNS = (196, 190), 128, 6
_INK, _RIGHT, _WRONG = "#1c2430", "#14733b", "#b3261e"


def read_accuracies(reports: Path, probed: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return `{held-out set: {kind: {column: accuracy}}}` of the reports of `ray-llava evaluate`."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in HELD_OUT:
        seen = _read(reports / f"{name}.json")
        shuffled = _read(reports / f"{name}_shuffled.json")
        table[name] = {}
        for kind in (*_KINDS, "overall"):
            score = seen["seeing"]["scores"][kind]
            table[name][kind] = {
                "right": score["accuracy"],
                "blanked": seen["blanked"]["scores"][kind]["accuracy"],
                "shuffled": shuffled["seeing"]["scores"][kind]["accuracy"],
                "majority": score["majority"],
            }
            if kind in probed[name]:
                table[name][kind]["probe"] = probed[name][kind]
    return table


def as_markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table of `read_accuracies` as Markdown."""
    columns = ("right", "blanked", "shuffled", "majority", "probe")
    lines = [f"| held-out set | question | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name, kinds in table.items():
        for kind, scores in kinds.items():
            shown = (f"{100 * scores[column]:.1f} %" if column in scores else "-" for column in columns)
            lines.append(f"| {name} | {kind} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw_answers(report: Path, shard: Path, out: Path, num_each: int = 12) -> None:
    """Draw the first held-out pictures that were answered right and the first that were not, with the answers."""
    said: dict[str, list[dict[str, Any]]] = {}
    for answer in _read(report)["seeing"]["answers"]:
        said.setdefault(answer["key"].rpartition("/")[2], []).append(answer)
    pictures = _pictures(shard)
    right = [key for key, answers in said.items() if all(map(_is_right, answers))][:num_each]
    wrong = [key for key, answers in said.items() if not all(map(_is_right, answers))][:num_each]
    rows = -(-len(right) // _COLUMNS) + -(-len(wrong) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], max(1, rows) * _CELL[1]), "#ffffff")
    place = 0
    for keys in (right, wrong):
        for key in keys:
            corner = (place % _COLUMNS * _CELL[0], place // _COLUMNS * _CELL[1])
            _draw(sheet, corner, pictures[key], said[key])
            place += 1
        place = -(-place // _COLUMNS) * _COLUMNS  # wrong ones begin a row
    sheet.save(out)


def _draw(sheet: Image.Image, corner: tuple[int, int], picture: Image.Image, answers: list[dict[str, Any]]) -> None:
    left, top = corner[0] + 8, corner[1] + 8
    sheet.paste(picture.resize((_PICTURE, _PICTURE)), (left, top))
    brush, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, answer in enumerate(answers):
        is_right = _is_right(answer)
        text = answer["given"].strip()[:12] + ("" if is_right else f" ({answer['expected']})")
        brush.text((left, top + _PICTURE + 4 + 19 * number), text, _RIGHT if is_right else _WRONG, font)


def _is_right(answer: dict[str, Any]) -> bool:
    return str(answer["given"]).strip().lower() == str(answer["expected"]).strip().lower()


def _pictures(shard: Path) -> dict[str, Image.Image]:
    found = {}
    with tarfile.open(shard) as tar:
        for entry in tar:
            stream = tar.extractfile(entry)
            if stream is not None and entry.name.endswith(".png"):
                found[entry.name.removesuffix(".png")] = Image.open(io.BytesIO(stream.read())).convert("RGB")
    return found


def _read(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
