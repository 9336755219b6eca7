"""The HTTP application: `/v1/chat/completions`, `/v1/models`, `/health` and `/metrics`.

Reads and checks a request, hands its question to a backend, and writes the answer in OpenAI's format.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import ExitStack, aclosing
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pipeline.generation.requests import Reply, Sampling
from pipeline.serving.access import AccessCheck, refusal_response
from pipeline.serving.answering.engine import Piece, Question
from pipeline.serving.backend import Backend
from pipeline.serving.limits import Admission, Hold
from pipeline.serving.measures import Measures
from pipeline.serving.options import ServeOptions
from pipeline.serving.page.routes import PAGE_PATHS, ChatPage
from pipeline.serving.refusals import RefusedError, unavailable
from pipeline.serving.wire.answers import DONE, AnswerShape, event
from pipeline.serving.wire.body import read_body, until_gone
from pipeline.serving.wire.conversation import ImagePlace, read_messages
from pipeline.serving.wire.fetching import fetch_image
from pipeline.serving.wire.images import check_image, read_data_url
from pipeline.serving.wire.request import ChatRequest, parse_request, stop_texts

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class ChatServer:
    """The routes of one server.

    Attributes:
        admission: what is under way.
        app: the ASGI application.
        ending: set when answers under way must end.
    """

    def __init__(self, options: ServeOptions, backend: Backend, page: ChatPage | None = None) -> None:
        """Build the application.

        Args:
            options: names, bounds and the key.
            backend: holds the models.
            page: the chat page; None for none.
        """
        self._options, self._backend = options, backend
        self._started = int(time.time())
        self.admission = Admission(options.limits)
        self.ending = asyncio.Event()
        self._measures = Measures(self.admission)
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        open_paths = ["/health"]
        if page is not None:
            routes += page.routes(self._read_for_page)
            open_paths += PAGE_PATHS
        handlers = {RefusedError: _on_refused, HTTPException: _on_http, Exception: _on_defect}
        inner = Starlette(routes=routes, exception_handlers=handlers)
        self.app = AccessCheck(inner, options.host, options.api_key, open_paths)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe(one.name) for one in self._options.models]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._describe(self._known(request.path_params["name"])))

    def _describe(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "ray-llava"}

    async def _health(self, _: Request) -> Response:
        if self.admission.is_closed or not await self._backend.is_ready():
            raise unavailable("no model is ready to answer")
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(self._measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _chat(self, request: Request) -> Response:
        """Answer one request; a streamed one keeps its place until its last event."""
        with ExitStack() as holds:
            try:
                response = await self._answer(request, holds)
            except RefusedError as error:
                self._measures.requests.labels(str(error.status)).inc()
                raise
            except ClientDisconnect:
                self._measures.requests.labels("499").inc()
                return Response(status_code=499)
            self._measures.requests.labels(str(response.status_code)).inc()
            return response

    async def _answer(self, request: Request, holds: ExitStack) -> Response:
        began = time.monotonic()
        hold = holds.enter_context(self.admission.admit())
        chat = parse_request(await read_body(request, self._options.limits, hold))
        model = self._known(chat.model)
        question = await self._read_question(chat, hold)
        if chat.stream:
            return await self._stream(chat, model, question, began, holds)
        # a client that went away frees its place in the batch
        answer = asyncio.ensure_future(self._within_time(self._backend.complete(model, question)))
        gone = asyncio.ensure_future(until_gone(request))
        ended = asyncio.ensure_future(self.ending.wait())
        try:
            await asyncio.wait((answer, gone, ended), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect if gone.done() else _ending()
            reply = answer.result()
        finally:
            for task in (answer, gone, ended):
                task.cancel()
        self._count(reply, began)
        return JSONResponse(AnswerShape(model).whole(reply))

    async def _read_for_page(self, request: Request) -> tuple[str, Question]:
        with self.admission.admit() as hold:
            chat = parse_request(await read_body(request, self._options.limits, hold))
            return self._known(chat.model), await self._read_question(chat, hold)

    async def _stream(
        self, chat: ChatRequest, model: str, question: Question, began: float, holds: ExitStack
    ) -> Response:
        """Begin a streamed answer: a question that cannot be answered still gets a status of its own."""
        pieces = self._until_ending(self._backend.stream(model, question))
        try:
            first = await self._within_time(anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        self._measures.first_seconds.observe(time.monotonic() - began)
        shape, with_usage = AnswerShape(model), bool(chat.stream_options and chat.stream_options.include_usage)
        kept = holds.pop_all()

        async def events() -> AsyncGenerator[bytes, None]:
            with kept:
                async with aclosing(pieces):
                    yield shape.begin(with_usage)
                    piece = first
                    try:
                        while True:
                            if piece.text:
                                yield shape.text(piece.text, with_usage)
                            if piece.reply is not None:
                                break
                            piece = await self._within_time(anext(pieces))
                        self._count(piece.reply, began)
                        yield shape.end(piece.reply, with_usage)
                    except RefusedError as error:
                        self._measures.broken.inc()
                        yield event(error.body)
                    yield DONE

        return _ClosingResponse(events(), media_type="text/event-stream; charset=utf-8")

    async def _until_ending(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """Hand pieces on until the server ends."""
        ended = asyncio.ensure_future(self.ending.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(pieces))
                try:
                    await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        raise _ending()
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.wait((following,))
                piece = following.result()
                yield piece
                if piece.reply is not None:
                    return
        finally:
            ended.cancel()
            await pieces.aclose()

    async def _within_time(self, work: Awaitable[_T]) -> _T:
        limit = self._options.limits.answer_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            raise RefusedError(504, f"no answer within {limit:.0f} s", code="timeout") from None

    async def _read_question(self, chat: ChatRequest, hold: Hold) -> Question:
        limits = self._options.limits
        wanted = chat.max_completion_tokens or chat.max_tokens or limits.default_new_tokens
        if wanted > limits.new_tokens:
            field = "max_tokens" if chat.max_tokens is not None else "max_completion_tokens"
            raise RefusedError(
                400, f"expected at most {limits.new_tokens}, found {wanted}", param=field, code="invalid_value"
            )
        conversation, places = read_messages(chat.messages, limits)
        images = [await self._read_image(place, hold) for place in places]
        sampling = Sampling(
            max_new_tokens=wanted,
            temperature=chat.temperature or 0.0,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=_seed_of(chat),
            stop=stop_texts(chat),
        )
        return Question(conversation, tuple(images), sampling)

    async def _read_image(self, place: ImagePlace, hold: Hold) -> bytes:
        limits = self._options.limits
        if place.url.startswith("data:"):
            data = await asyncio.to_thread(read_data_url, place.url, place.param)
        else:
            data = await fetch_image(place, self._options.image_hosts, limits, hold)
        return await asyncio.to_thread(check_image, data, limits.image, place.param)

    def _known(self, name: str | None) -> str:
        names = [one.name for one in self._options.models]
        if name is None:
            return names[0]
        if name not in names:
            raise RefusedError(
                404,
                f"no such model; this server has {', '.join(names)}",
                param="model",
                code="model_not_found",
            )
        return name

    def _count(self, reply: Reply, began: float) -> None:
        self._measures.prompt_tokens.inc(reply.num_prompt_tokens)
        self._measures.answer_tokens.inc(len(reply.token_ids))
        self._measures.seconds.observe(time.monotonic() - began)


class _ClosingResponse(StreamingResponse):
    """A stream whose generator is closed also when the client went away before the end."""

    def __init__(self, events: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(events, media_type=media_type)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def _seed_of(chat: ChatRequest) -> int:
    """Return a seed of 64 bits; without one in the request, another for each request."""
    if chat.seed is not None:
        return chat.seed
    return time.time_ns() & (2**63 - 1)


def _ending() -> RefusedError:
    return unavailable("the server shut down before the answer was complete")


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal_response(error)


async def _on_http(_: Request, error: Exception) -> Response:
    """Answer unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take that method"}
    response = refusal_response(RefusedError(error.status_code, words.get(error.status_code, "refused")))
    response.headers.update(error.headers or {})
    return response


async def _on_defect(_: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return refusal_response(RefusedError(500, "the server failed on this request", code="internal_error"))
