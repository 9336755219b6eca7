"""One row of any dialect, read so that it shows all of its media, or refused with the name of what it would not show.

`read_row` brings together what the row says (`turns`), every place that may hold media (`row_media`) and the marks in
its texts (`marks`): each place of media must end at one mark or in a form that implies where it stands. Fetching bytes
is left to `media_bytes`, the written form to `written`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import part_kind
from pipeline.samples.video import VIDEO_PLACE
from pipeline.tools.convert.marks import Mark, foreign_marks, split_marks
from pipeline.tools.convert.row import UNREAD, Part, Reading, RowError, RowRules, Slot, Tally
from pipeline.tools.convert.row_checks import check_caption, mismatch, only_film, shown_name
from pipeline.tools.convert.row_media import Found, family, find_media, is_file_name
from pipeline.tools.convert.turns import Said, read_said

_TEXT_PARTS = ("text", "input_text", "output_text")
_PICTURE_PARTS = ("image", "image_url", "input_image")
_FILM_PARTS = ("video", "video_url", "input_video")
_ASSISTANTS = ("gpt", "assistant")
_USERS = ("human", "user", "Human", "User", "USER")


def read_row(row: Mapping[str, Any], rules: RowRules = RowRules()) -> Reading:  # noqa: B008
    """Read a row.

    Raises:
        RowError: it has no text, or the sample would show less than the row holds.
    """
    row = rules.fields.apply(row)
    kept = {name: value for name, value in row.items() if name not in rules.ignored}
    num_ignored = len(find_media({name: value for name, value in row.items() if name in rules.ignored}))
    try:
        said = read_said(kept, rules.text_field)
        kept[said.field] = said.stored  # turns stored as text hold media too
        found = find_media(kept)
        return _Reader(kept, said, found, rules, num_ignored, film=only_film(found)).read()
    except DataError as error:
        refused = RowError(error.reason, error.what)
        found = find_media(kept)
        refused.tally = Tally(media=len([one for one in found if not one.is_origin] or found), set_aside=num_ignored)
        raise refused from None


class _Reader:
    """Reads one row; holds what was found and what of it has a place."""

    def __init__(
        self,
        row: Mapping[str, Any],
        said: Said,
        found: Sequence[Found],
        rules: RowRules,
        num_ignored: int,
        *,
        film: bool,
    ) -> None:
        self._is_film = film
        if film:  # it has one place, as a picture would
            found = [one._replace(kind="picture") if one.kind == "film" else one for one in found]
        self._row, self._said, self._rules, self._num_ignored = row, said, rules, num_ignored
        self._in_turns = [one for one in found if one.path[0] == said.field]
        self._at_top = [one for one in found if one.path[0] != said.field]
        self._taken: set[int] = set()
        self._aside: set[int] = set()
        self._is_plain = said.form == "turns" and row.get(said.field) is said.turns
        self._marks = 0

    def read(self) -> Reading:
        self._check_kinds()
        if self._said.form == "document":
            return self._document()
        if self._said.form == "caption":
            return self._caption()
        turns = [self._turn(turn, idx) for idx, turn in enumerate(self._said.turns)]
        bound = [part.media for _, parts in turns for part in parts if isinstance(part, Slot) and part.media]
        top = self._listed(bound)
        turns, implied = self._placed(turns, top)
        media = self._bind(turns, top)
        self._check_nothing_left()
        self._check_foreign(turns)
        leads = bool(turns) and turns[0][0] in _ASSISTANTS
        is_dropped = leads and self._rules.policy.drop_leading_answer
        tally = self._tally(len(media), implied, len(turns) - is_dropped)
        plain = self._said.turns if self._is_plain else None
        return Reading(turns, None, media, plain, self._used(), tally, self._is_film)

    def _used(self) -> frozenset[str]:
        taken = {str(one.path[0]) for one in self._at_top if id(one) in self._taken or not is_file_name(one.value)}
        return self._said.fields | taken

    def _tally(self, num_media: int, implied: int, num_turns: int) -> Tally:
        aside = len(self._in_turns) + len(self._at_top) - len(self._taken) + self._num_ignored
        return Tally(num_media, self._marks, implied, num_turns, max(0, aside))

    def _check_kinds(self) -> None:
        """Refuse films, sounds and unknown data, unless they only say where a picture came from."""
        pictures = [one for one in (*self._at_top, *self._in_turns) if one.kind == "picture"]
        for one in (*self._at_top, *self._in_turns):
            if one.kind != "picture" and not (one.is_origin and pictures):
                raise DataError(Reason.MEDIA_UNREAD, f"field `{one.field}` {UNREAD[one.kind]}{shown_name(one)}")

    def _turn(self, turn: Mapping[str, Any], idx: int) -> tuple[str, list[Part]]:
        role = turn.get("from", turn.get("role"))
        content = turn.get("value", turn.get("content", turn.get("text")))
        if "value" not in turn and "content" not in turn:
            self._is_plain = False
        if not isinstance(role, str):
            raise DataError(Reason.ROLE_UNKNOWN, f"turn {idx} has role none")
        if isinstance(content, str):
            parts = self._marked(content)
        elif isinstance(content, list):
            parts = [part for place, one in enumerate(content) for part in self._part(one, idx, place)]
        else:
            raise DataError(Reason.JSON_INVALID, f"turn {idx} has no text: expected `value` or `content`")
        return role, self._with_own(parts, idx)

    def _marked(self, text: str) -> list[Part]:
        """Return a text with its marks as slots; numbers count only where there are pictures to count."""
        parts: list[Part] = []
        if self._is_film and VIDEO_PLACE in text:
            text = text.replace(VIDEO_PLACE, DEFAULT_IMAGE_TOKEN)
        for part in split_marks(text, numbered=bool(self._at_top)):
            if isinstance(part, str):
                parts.append(part)
                continue
            self._marks += 1
            if part.name is not None:
                named = Found((self._said.field, "<img>"), "picture", part.name)
                self._in_turns.append(named)
                self._take(named)
                parts.append(Slot(named))
            else:
                parts.append(Slot(None, part.number))
            if part != Mark():
                self._is_plain = False
        return parts

    def _part(self, part: Any, idx: int, place: int) -> list[Part]:
        """Return what a part of a message shows; the letters `<image>` in a text part stay letters."""
        if isinstance(part, str):
            self._is_plain = False
            return [part]
        kind = part_kind(part)
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            self._is_plain = self._is_plain and kind == "text"
            return [part["text"]] if part["text"] else []
        if kind not in (_FILM_PARTS if self._is_film else _PICTURE_PARTS):
            found = ascii(kind)[:24] if isinstance(kind, str) else "none"
            raise DataError(Reason.MEDIA_UNREAD, f"turn {idx} has a part of type {found}, neither text nor image")
        self._marks += 1
        own = [
            one for one in self._in_turns if one.path[1:2] == (idx - self._num_added(),) and one.path[3:4] == (place,)
        ]
        names = {repr(one.identity()) for one in own}
        if len(names) > 1:
            raise DataError(Reason.MEDIA_UNREAD, f"a part of turn {idx} names {len(names)} pictures")
        for one in own:
            self._take(one)
        if own:
            self._is_plain = self._is_plain and is_file_name(own[0].value) and kind != "input_image"
            return [Slot(own[0])]
        self._is_plain = self._is_plain and kind != "input_image"
        return [Slot()]

    def _num_added(self) -> int:
        """Return how many turns come before those of the row's own list."""
        turns = self._row.get(self._said.field)
        return len(self._said.turns) - len(turns) if self._said.form == "turns" and isinstance(turns, list) else 0

    def _with_own(self, parts: list[Part], idx: int) -> list[Part]:
        """Return a turn's parts with the pictures that the turn itself lists: at its marks, else before its text."""
        own = [
            one
            for one in self._in_turns
            if one.path[1:2] == (idx - self._num_added(),)
            and id(one) not in self._taken
            and one.path[2] not in ("content", "value")
        ]
        if not own:
            return parts
        self._is_plain = False
        for one in own:
            self._take(one)
        free = [place for place, part in enumerate(parts) if isinstance(part, Slot) and part.media is None]
        if not free:
            self._marks += len(own)  # the list itself says that the turn shows them
            return [*(Slot(one) for one in own), *parts]
        if len(free) != len(own):
            raise mismatch(len(free), len(own), own)
        for place, one in zip(free, own, strict=True):
            parts[place] = Slot(one)
        return parts

    def _listed(self, bound: Sequence[Found]) -> list[Found]:
        """Return the pictures at the top that need a place, in order: those of one field or one numbered family."""
        pictures = [one for one in self._at_top if one.kind == "picture" and one.is_direct]
        if self._rules.image_field is not None:
            named = [one for one in pictures if one.path[0] == self._rules.image_field]
        else:
            named = [one for one in pictures if not one.is_origin] or ([] if bound else pictures)
        if bound and {repr(one.identity()) for one in named} <= {repr(one.identity()) for one in bound}:
            named = []  # a list of what the turns show already
        chosen = self._one_family(named)
        for one in chosen:
            self._take(one)
        shown = {repr(one.identity()) for one in (*chosen, *bound)}
        self._aside = {id(one) for one in self._at_top if shown and (repr(one.identity()) in shown or one.is_origin)}
        return chosen

    def _one_family(self, found: list[Found]) -> list[Found]:
        """Return the pictures of the first family; those of another one are left, unless they are the same files."""
        families: dict[str, list[Found]] = {}
        for one in found:
            families.setdefault(family(str(one.path[0])), []).append(one)
        if not families:
            return []
        first, *_ = families.values()
        fields = list(dict.fromkeys(str(one.path[0]) for one in first))
        if len(fields) > 1 and not all(any(letter.isdigit() for letter in name) for name in fields[1:]):
            lists = {name: [repr(one.identity()) for one in first if one.path[0] == name] for name in fields}
            if len({tuple(one) for one in lists.values()}) == 1:  # `image` and `images` with the same
                return [one for one in first if one.path[0] == fields[0]]
            raise DataError(
                Reason.MEDIA_UNREAD, f"{' and '.join(f'`{name}`' for name in fields)} hold different pictures"
            )
        order = sorted(fields, key=lambda name: int("".join(filter(str.isdigit, name)) or 0))
        return sorted(first, key=lambda one: order.index(str(one.path[0])))

    def _placed(
        self, turns: list[tuple[str, list[Part]]], top: Sequence[Found]
    ) -> tuple[list[tuple[str, list[Part]]], int]:
        """Return the turns with a slot for each listed picture, and how many of them the form implies."""
        if not top or any(isinstance(part, Slot) for _, parts in turns for part in parts):
            return turns, 0
        marked = self._with_marks_in_parts(turns, len(top))
        if marked is not None:
            return marked, 0
        if self._said.form == "pairs":
            first = next((place for place, (role, _) in enumerate(turns) if role in _USERS), 0)
            role, parts = turns[first]
            return [*turns[:first], (role, [*(Slot() for _ in top), *parts]), *turns[first + 1 :]], len(top)
        if self._rules.policy.prepend_missing_placeholder and len(top) == 1:
            asked = [place for place, (role, _) in enumerate(turns) if role in _USERS]
            for first in asked[:1]:  # written by `repair_turns`
                role, parts = turns[first]
                return [*turns[:first], (role, [Slot(), "\n", *parts]), *turns[first + 1 :]], 1
        return turns, 0

    def _with_marks_in_parts(
        self, turns: list[tuple[str, list[Part]]], num_top: int
    ) -> list[tuple[str, list[Part]]] | None:
        """Return turns whose text parts write `<image>` for every listed picture; None when they do not."""
        marked = [
            (role, [one for part in parts if isinstance(part, str) for one in split_marks(part, numbered=False)])
            if role in _USERS
            else (role, list(parts))
            for role, parts in turns
        ]
        if sum(isinstance(part, Mark) for _, parts in marked for part in parts) != num_top:
            return None
        self._is_plain = False
        self._marks += num_top
        return [(role, [part if isinstance(part, str) else Slot() for part in parts]) for role, parts in marked]

    def _bind(self, turns: list[tuple[str, list[Part]]], top: Sequence[Found]) -> tuple[Found, ...]:
        """Give each slot its picture, in place, and return them in the order of their places."""
        slots = [part for _, parts in turns for part in parts if isinstance(part, Slot)]
        free = [slot for slot in slots if slot.media is None]
        pictures = list(top)
        if any(slot.number is not None for slot in free):
            pictures = self._by_number(free, pictures)
        if len(free) != len(pictures):
            raise mismatch(len(slots), len(slots) - len(free) + len(pictures), top)
        rest = iter(pictures)
        media = []
        for _, parts in turns:
            for place, part in enumerate(parts):
                if isinstance(part, Slot):
                    picture = part.media if part.media is not None else next(rest)
                    parts[place] = Slot(picture)
                    media.append(picture)
        return tuple(media)

    def _by_number(self, free: Sequence[Slot], pictures: list[Found]) -> list[Found]:
        """Return the pictures in the order in which numbered marks show them; each must be shown."""
        numbers = [slot.number for slot in free]
        lowest = min((number for number in numbers if number is not None), default=0)
        start = 0 if lowest == 0 else 1
        wanted = [-1 if number is None else number - start for number in numbers]
        if sorted(set(wanted)) != list(range(len(pictures))):
            raise mismatch(len(free), len(pictures), pictures)
        return [pictures[number] for number in wanted]

    def _check_nothing_left(self) -> None:
        """Refuse a row with media that no place shows."""
        for one in (*self._at_top, *self._in_turns):
            if id(one) not in self._taken and id(one) not in self._aside:
                what = "film" if self._is_film else "picture"
                raise DataError(
                    Reason.MEDIA_UNREAD, f"field `{one.field}` holds a {what} that no place shows{shown_name(one)}"
                )

    def _check_foreign(self, turns: Sequence[tuple[str, Sequence[Part]]]) -> None:
        """Refuse texts of the user with places for films, sounds, or pictures in another spelling."""
        for idx, (role, parts) in enumerate(turns):
            text = "".join(part if isinstance(part, str) else "<image>" for part in parts)
            mark = next(foreign_marks(text), None) if role in _USERS else None
            if mark is not None:
                raise DataError(Reason.MEDIA_UNREAD, f"turn {idx} has a place {mark!a} that nothing is read for")

    def _caption(self) -> Reading:
        """Read a caption: all pictures belong to it."""
        chosen = self._listed([])
        self._check_nothing_left()
        check_caption(str(self._said.caption), len(chosen))
        tally = self._tally(len(chosen), len(chosen), 0)
        return Reading([], str(self._said.caption), tuple(chosen), None, self._used(), tally, self._is_film)

    def _document(self) -> Reading:
        """Read texts and pictures in their order: the user shows what leads to the first answer, the rest is learnt."""
        pictures = {one.path[1]: one for one in self._at_top if one.path[0] == "images" and len(one.path) > 1}
        parts: list[Part] = []
        for place, item in enumerate(self._said.turns):
            if item["text"] is not None:
                parts.append(item["text"])
            elif place in pictures:
                self._take(pictures[place])
                parts.append(Slot(pictures[place]))
        self._aside = {id(one) for one in self._at_top if one.is_origin and pictures}
        self._check_nothing_left()
        media = tuple(part.media for part in parts if isinstance(part, Slot) and part.media is not None)
        first = next((place for place, part in enumerate(parts) if isinstance(part, Slot)), None)
        if first is None or not any(isinstance(part, str) and part.strip() for part in parts[first + 1 :]):
            raise DataError(Reason.NO_ASSISTANT, "a document without text after its first picture")
        turns: list[tuple[str, list[Part]]] = [("user", parts[: first + 1]), ("assistant", parts[first + 1 :])]
        return Reading(turns, None, media, None, self._used(), self._tally(len(media), len(media), 2))

    def _take(self, one: Found) -> None:
        self._taken.add(id(one))
