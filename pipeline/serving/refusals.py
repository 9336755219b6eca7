"""Why a request is not answered, as an HTTP status and a body in OpenAI's error shape.

Messages are for the senders of requests: they name fields and limits, never files, folders or machines.
"""

from __future__ import annotations

from typing import Any


class RefusedError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: HTTP status, 4xx or 5xx.
        message: what was expected, what was found, what to do.
        param: the field at fault, such as `messages[0].content[1].image_url.url`; None for the request as a whole.
        code: a stable word that programs compare.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when the error crosses a process boundary."""
        return _rebuild, (self.status, self.message, self.param, self.code)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self._type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}

    @property
    def _type(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


def _rebuild(status: int, message: str, param: str | None, code: str | None) -> RefusedError:
    return RefusedError(status, message, param=param, code=code)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> RefusedError:
    """Return a refusal of a request whose content is wrong."""
    return RefusedError(400, message, param=param, code=code)


def unavailable(message: str) -> RefusedError:
    """Return a refusal that may go away when the same request is sent again."""
    return RefusedError(503, message, code="unavailable")
