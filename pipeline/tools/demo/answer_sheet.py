"""One PNG of held-out pictures with the questions asked about them and the answers given; drawn with Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.questions import EvaluationSample
from pipeline.evaluation.scores import Answer
from pipeline.tools.demo.report import answers_of, chosen_samples
from pipeline.tools.demo.results import Point

_CARD = (680, 280)  # pixels
_COLUMNS = 2
_MARGIN = 16
_PICTURE_HEIGHT = 130
_LINE_HEIGHT = 26
_INK, _RIGHT, _WRONG, _PAPER = "#1c2430", "#14733b", "#b3261e", "#ffffff"


def render_answer_sheet(point: Point, samples: Sequence[EvaluationSample], num_shown: int = 12) -> bytes:
    """Draw the first samples with one and with several images, and how the model answered.

    Args:
        point: the evaluation whose answers are shown.
        samples: the evaluated samples.
        num_shown: how many of them to show.

    Returns:
        PNG bytes.
    """
    entries = chosen_samples(samples, num_shown)
    rows = -(-len(entries) // _COLUMNS)
    width, height = _CARD
    sheet = Image.new("RGB", (_COLUMNS * width, max(1, rows) * height), _PAPER)
    for number, entry in enumerate(entries):
        card = _draw_card(entry, answers_of(point, entry))
        sheet.paste(card, (number % _COLUMNS * width, number // _COLUMNS * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _draw_card(entry: EvaluationSample, answers: Sequence[Answer]) -> Image.Image:
    card = Image.new("RGB", _CARD, _PAPER)
    brush = ImageDraw.Draw(card)
    left = _MARGIN
    for data in entry.sample.images:
        with Image.open(io.BytesIO(data)) as stored:
            picture = stored.convert("RGB")
        picture.thumbnail((160, _PICTURE_HEIGHT))
        card.paste(picture, (left, _MARGIN))
        brush.rectangle((left, _MARGIN, left + picture.width, _MARGIN + picture.height), outline="#dfe3e8")
        left += picture.width + 12
    font = ImageFont.load_default(16)
    top = _MARGIN + _PICTURE_HEIGHT + 12
    for answer in answers:
        question = answer.question.strip().rpartition("\n")[2]
        brush.text((_MARGIN, top), question, fill=_INK, font=font)
        verdict = answer.given if answer.is_right else f"{answer.given}  (expected {answer.expected})"
        place = _MARGIN + brush.textlength(question, font) + 10
        brush.text((place, top), verdict, fill=_RIGHT if answer.is_right else _WRONG, font=font)
        top += _LINE_HEIGHT
    brush.line((_MARGIN, _CARD[1] - 1, _CARD[0] - _MARGIN, _CARD[1] - 1), fill="#dfe3e8")
    return card
