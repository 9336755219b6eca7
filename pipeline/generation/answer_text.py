"""An answer's text while its tokens come: what was handed out stays, and only what can no longer change is handed out.

Held back are the first bytes of a character, what may be the beginning of a stop text, and white space at either end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes, so tokens, that spell one character."""


class AnswerText:
    """Spells one answer token by token."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        """Start with no text.

        Args:
            decode: spells ids, without control tokens.
            stops: texts that end the answer, also across tokens.
        """
        self._decode, self._stops = decode, tuple(stops)
        self._ids: list[int] = []
        # ids before `_anchor` are spelled and no longer needed; those before `_read` are spelled and needed as context,
        # because some tokenizers spell a token otherwise when nothing comes before it
        self._anchor, self._read = 0, 0
        self._held, self._has_begun = "", False
        self.has_stopped = False

    def add(self, token_id: int) -> str:
        """Take the next token; returns the text that it makes certain, which may be empty."""
        self._held += self._spell(token_id)
        found = [self._held.index(stop) for stop in self._stops if stop in self._held]
        if found:
            self._held, self.has_stopped = self._held[: min(found)], True
            return self.close()
        return self._release(len(self._held) - self._possible_stop())

    def close(self) -> str:
        """Return the text that was held back until the end; bytes of an unfinished character are left out."""
        text = self._release(len(self._held))
        self._held = ""
        return text

    def _spell(self, token_id: int) -> str:
        self._ids.append(token_id)
        before = self._decode(self._ids[self._anchor : self._read])
        text = self._decode(self._ids[self._anchor :])
        may_go_on = text.endswith(_INCOMPLETE) and len(self._ids) - self._read < _LONGEST_CHARACTER
        if may_go_on or len(text) <= len(before):
            return ""
        self._anchor, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _possible_stop(self) -> int:
        """Return how many of the last letters held may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> str:
        """Hand out what is held before `end`, without the white space at its end."""
        text = self._held[:end].rstrip()
        self._held = self._held[len(text) :]
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text
