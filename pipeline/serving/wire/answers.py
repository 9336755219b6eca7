"""Response bodies of OpenAI's chat completions: a whole answer, and the events of a streamed one."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from pipeline.generation.requests import Reply


class AnswerShape:
    """The bodies of one answer, which share its id, time and model."""

    def __init__(self, model: str) -> None:
        """Begin an answer.

        Args:
            model: name that the answer carries.
        """
        self._facts = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, reply: Reply) -> dict[str, Any]:
        """Return the body of a finished answer."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(reply)}
        return {**self._facts, "object": "chat.completion", "choices": [choice], "usage": usage_of(reply)}

    def begin(self, with_usage: bool) -> bytes:
        """Return the first event."""
        return self._chunk({"role": "assistant", "content": ""}, None, with_usage)

    def text(self, text: str, with_usage: bool) -> bytes:
        """Return an event with more text."""
        return self._chunk({"content": text}, None, with_usage)

    def end(self, reply: Reply, with_usage: bool) -> bytes:
        """Return the event that says why the answer ended, and with `with_usage` the one that counts its tokens."""
        last = self._chunk({}, _reason(reply), with_usage)
        if with_usage:
            last += event({**self._facts, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(reply)})
        return last

    def _chunk(self, delta: dict[str, str], reason: str | None, with_usage: bool) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body: dict[str, Any] = {**self._facts, "object": "chat.completion.chunk", "choices": [choice]}
        return event(body | ({"usage": None} if with_usage else {}))


DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


def event(body: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def usage_of(reply: Reply) -> dict[str, int]:
    """Count the tokens of an answer; image features count as tokens of the prompt."""
    num_new = len(reply.token_ids)
    return {
        "prompt_tokens": reply.num_prompt_tokens,
        "completion_tokens": num_new,
        "total_tokens": reply.num_prompt_tokens + num_new,
    }


def _reason(reply: Reply) -> str:
    return "stop" if reply.finish_reason == "stop" else "length"
