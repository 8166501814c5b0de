"""What can go wrong on the HTTP side, drawn as a tree, and how the client is told.

    ProxyError
      ClientGone         the client hung up: nobody is left to answer
      BodyTooLarge       413  the request body is over the limit
      HeadersTooLarge    431  the request's headers are over the limit
      BadFraming         400  the request's end cannot be told for certain
      NoJson             400  the request's body is no JSON object
      Unauthorized       401  whose memory is asked for is not certain
      TooManyListeners   503  the process has as many open streams of events as it takes
      UpstreamError
        Unreachable      502  no answer came: not connected, or hung up before the first byte
          Silent         504  connected, and then no byte for too long
        UpstreamCut      the answer broke off: the client's answer breaks off at the same byte

An error of the upstream's own is no error here: it goes to the client with its own status and body.
"""

from typing import Literal, assert_never

import orjson

from memory.errors import Conflict, InvalidRequest, LLMMemoryError, NotAllowed, NotFound, StoreUnavailable, TooLarge

Dialect = Literal["openai", "anthropic"]


class ProxyError(Exception):
    """Something went wrong between client and upstream."""

    status = 500
    type = "server_error"  # OpenAI's `error.type`
    code: str | None = None  # OpenAI's `error.code`
    should_retry: bool | None = None  # `x-should-retry`, which OpenAI's and Anthropic's SDKs obey; None: unsaid

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ClientGone(ProxyError):
    """The client hung up before the answer was complete."""


class BodyTooLarge(ProxyError):
    """The request body is over the limit."""

    status, type, code = 413, "invalid_request_error", "request_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than the {limit_bytes:,} bytes this proxy accepts.")
        self.limit_bytes = limit_bytes


class HeadersTooLarge(ProxyError):
    """The request's headers are over the limit."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request headers are larger than the {limit_bytes:,} bytes this proxy accepts.")
        self.limit_bytes = limit_bytes


class BadFraming(ProxyError):
    """The request says in two ways where its body ends."""

    status, type, code = 400, "invalid_request_error", "bad_framing"


class NoJson(ProxyError):
    """The request's body is no JSON object."""

    status, type, code = 400, "invalid_request_error", "invalid_json"


class Unauthorized(ProxyError):
    """A key is needed."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class TooManyListeners(ProxyError):
    """The process has as many open streams of events as it takes."""

    status, type, code = 503, "server_error", "too_many_listeners"

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} programs listen to this process already; try again later.")


class UpstreamError(ProxyError):
    """The upstream did not give a whole answer."""

    status, type, code = 502, "upstream_error", "upstream_failed"


class Unreachable(UpstreamError):
    """The upstream gave no answer."""

    code = "upstream_unreachable"

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        """
        Args:
            reason: a whole sentence or two that names the upstream and what to check.
            sent: the upstream may have seen the request. Asking again may then pay twice, so the SDKs are told not
                to; where nothing was sent, asking again is free and the SDKs' own backoff rides out a restart.
        """
        super().__init__(reason)
        self.should_retry = not sent


class Silent(Unreachable):
    """The upstream took the request and stayed silent."""

    status, code = 504, "upstream_silent"


class UpstreamCut(UpstreamError):
    """The upstream's answer broke off before its end."""

    code = "upstream_cut"


def error_body(error: Exception, dialect: Dialect = "openai") -> tuple[int, bytes]:
    """The status and the JSON body that tell a client about `error`, in the shape its SDK expects.

    Of errors that are neither ours nor the memory's only a general sentence is told: their texts may hold secrets.
    """
    status, kind, code = _status_type_code(error)
    known = isinstance(error, ProxyError | LLMMemoryError)
    message = str(error) if known else "Something went wrong inside the proxy; its log says what."
    match dialect:
        case "openai":
            param = error.field if isinstance(error, InvalidRequest | Conflict | NotFound) else None
            body: object = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        case "anthropic":
            body = {"type": "error", "error": {"type": _anthropic_type(status), "message": message}, "request_id": None}
        case _:
            assert_never(dialect)
    return status, orjson.dumps(body)


def error_headers(error: Exception) -> list[tuple[bytes, bytes]]:
    """The headers that go with `error_body`; the content-length is left to the caller."""
    headers = [(b"content-type", b"application/json")]
    if isinstance(error, ProxyError) and error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    return headers


def _status_type_code(error: Exception) -> tuple[int, str, str | None]:
    match error:
        case ProxyError():
            return error.status, error.type, error.code
        case NotFound():
            return 404, "invalid_request_error", "not_found"
        case TooLarge():
            return 413, "invalid_request_error", "request_too_large"
        case Conflict():
            return 409, "invalid_request_error", "conflict"
        case NotAllowed():
            return 401, "authentication_error", "not_allowed"
        case InvalidRequest():
            return 400, "invalid_request_error", "invalid_request"
        case StoreUnavailable():
            return 503, "server_error", "store_unavailable"
        case _:
            return 500, "server_error", None


def _anthropic_type(status: int) -> str:
    """Source: the table "HTTP errors" in Anthropic's API documentation."""
    names = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
    return names.get(status, "invalid_request_error" if status < 500 else "api_error")
