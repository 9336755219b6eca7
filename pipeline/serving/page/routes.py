"""Addresses of the chat page: its files, the prompt of a conversation, and held-out samples to try.

Scripts and styles come from this server only, and everything that a model or a sample says is shown as text.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.samples.image import probe_image
from pipeline.serving.answering.engine import Question
from pipeline.serving.refusals import RefusedError

if TYPE_CHECKING:  # not needed by a server without the page
    from pipeline.evaluation.questions import EvaluationSample
    from pipeline.serving.answering.prompt_view import PromptView

Describe = Callable[[str, Question], Awaitable["PromptView | RefusedError"]]
ReadQuestion = Callable[[Request], Awaitable[tuple[str, Question]]]

PAGE_PATHS = ("/", "/chat.js", "/chat.css")
"""Served without a key: they hold nothing of anyone's."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_KINDS = {
    "/": ("chat.html", "text/html"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/chat.css": ("chat.css", "text/css"),
}


class ChatPage:
    """The page of one server."""

    def __init__(self, describe: Describe, samples: Sequence[EvaluationSample]) -> None:
        """Prepare the routes.

        Args:
            describe: returns the prompt of a question to the named model.
            samples: held-out ones that the page may show.
        """
        self._describe, self._samples = describe, samples

    def routes(self, read_question: ReadQuestion) -> list[Route]:
        """Return the page's addresses.

        Args:
            read_question: reads a request as `/v1/chat/completions` does.
        """

        async def prompt(request: Request) -> Response:
            model, question = await read_question(request)
            view = await self._describe(model, question)
            if isinstance(view, RefusedError):
                raise view
            images = [one._asdict() for one in view.images]
            return JSONResponse({"pieces": view.pieces, "num_tokens": view.num_tokens, "images": images})

        pages = [Route(path, _static, methods=["GET"]) for path in PAGE_PATHS]
        return [
            *pages,
            Route("/chat/prompt", prompt, methods=["POST"]),
            Route("/chat/example", self._example, methods=["GET"]),
        ]

    async def _example(self, _: Request) -> Response:
        """Return any held-out sample: its first question, the expected answer, and the images shown by then."""
        if not self._samples:
            raise RefusedError(404, "there are no held-out samples; start with --examples SHARDS", code="no_examples")
        sample = random.choice(self._samples).sample
        turns = [turn for turn in sample.conversation.turns if turn.role != "system"]
        shown = sample.images[: sum(not isinstance(part, str) for part in turns[0].parts)]
        question = "".join(part if isinstance(part, str) else DEFAULT_IMAGE_TOKEN for part in turns[0].parts)
        return JSONResponse(
            {
                "key": sample.key,
                "question": question.strip(),
                "answer": turns[1].text.strip(),
                "images": [_data_url(data) for data in shown],
            }
        )


def _data_url(data: bytes) -> str:
    return f"data:image/{probe_image(data).format.lower()};base64,{base64.b64encode(data).decode()}"


async def _static(request: Request) -> Response:
    name, kind = _KINDS[request.url.path]
    content = files("pipeline.serving.page").joinpath(name).read_bytes()
    return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Content-Security-Policy": _POLICY})
