"""The request of OpenAI's `/v1/chat/completions`, as far as a vision-language model can follow it.

Fields that clients send but that change nothing here are taken at the value that means so; any other value is refused
by name, so that no request is answered differently from what it asks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.serving.refusals import RefusedError, invalid


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class TextPart(_Strict):
    """Text of a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is."""

    url: str
    """`data:image/...;base64,...`, or http(s) where the server has a list of hosts."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Taken and not followed: the model was trained with one way to cut images."""


class ImagePart(_Strict):
    """An image at its place among the text."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None
    """Taken and not used: conversations in training carry no names."""
    refusal: None = None
    """Clients return the server's own messages with it."""


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _TextFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Strict):
    """Body of a request; units and limits as in OpenAI's reference."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    """A name of `/v1/models`; None for the first."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """None or 0 is greedy, as models of this project are evaluated."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: _TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None


_MAX_STOPS, _MAX_STOP_CHARS = 4, 200


def parse_request(body: bytes) -> ChatRequest:
    """Read a request body.

    Raises:
        RefusedError: it cannot be read as a request (400); names the first field at fault.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only allowed with stream: true", "stream_options")
    for idx, text in enumerate(stops := stop_texts(request)):
        if not 1 <= len(text) <= _MAX_STOP_CHARS:
            raise invalid(f"expected 1 to {_MAX_STOP_CHARS} letters, found {len(text)}", f"stop[{idx}]")
    if len(stops) > _MAX_STOPS:
        raise invalid(f"expected at most {_MAX_STOPS} stop texts, found {len(stops)}", "stop")
    return request


def stop_texts(request: ChatRequest) -> tuple[str, ...]:
    """Return the texts at which an answer ends."""
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def _explain(error: ValidationError) -> RefusedError:
    """Name the field at fault, without the value that was sent: it may be megabytes of image."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(found, key=lambda one: len(one["loc"]))  # of the branches of a union, the one that went furthest
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON; send one JSON object", code="invalid_json")
    field = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return invalid(f"{field}: this field is not known here; leave it out", field, "unknown_parameter")
    return invalid(f"{field or 'the body'}: {first['msg'][:_MAX_WORDS]}", field or None)


_MAX_WORDS = 200
_TAGS = ("text", "image_url")


def _path(places: tuple[int | str, ...]) -> str:
    """Spell a place in a request, without pydantic's names for the branches of a union."""
    path = ""
    for idx, place in enumerate(places):
        if isinstance(place, int):
            path += f"[{place}]"
        elif "[" in place or place == "str" or (place in _TAGS and isinstance(places[idx - 1], int)):
            continue
        else:
            path += f".{place[:_MAX_WORDS]}" if path else place[:_MAX_WORDS]
    return path
