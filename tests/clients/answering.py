"""What the providers of all dialects share: words, and ways to put an answer on the wire."""

import gzip
import json
import re
from collections.abc import Sequence

from tests.clients.scenarios import Asked, Json
from tests.scripted import End, Step, Steps, answer

Header = tuple[bytes, bytes]

KIND = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
OPENAI_HEADERS = [
    (b"Date", b"Mon, 09 Nov 2026 10:00:00 GMT"),
    (b"Server", b"cloudflare"),
    (b"access-control-expose-headers", b"X-Request-ID"),
    (b"openai-organization", b"acme-1"),
    (b"openai-processing-ms", b"412"),
    (b"openai-version", b"2020-10-01"),
    (b"x-ratelimit-limit-tokens", b"2000000"),
    (b"x-ratelimit-remaining-tokens", b"1999971"),
    (b"x-ratelimit-reset-tokens", b"0s"),
    (b"X-Request-Id", b"req_5e1f"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"CF-RAY", b"97a1-FRA"),
    (b"alt-svc", b'h3=":443"; ma=86400'),
]
WORDS = ["The caf\u00e9", " opens", " at", " nine", " \u2014 \u4e5d\u6642", " \U0001f642."]
SAID = "".join(WORDS)
SHAPE = '{"name": "Ada",  "age": 36}'
LATER_SECONDS = 0.3  # of two that are asked at once, the first waits so much longer for its answer
AT_ONCE = 3
AT_ONCE_SENT = tuple(f"house {number}" for number in range(1, AT_ONCE + 1))
AT_ONCE_HEARD = (r"(.|\n)*".join(f"House {number} opens at nine" for number in range(1, AT_ONCE + 1)),)
CHUNK_BYTES = 97  # of a stream on the wire: events and letters are cut anywhere
COOKIES = [
    (b"Set-Cookie", b"__cf_bm=abc.1; path=/; HttpOnly"),
    (b"Set-Cookie", b"_cfuvid=xyz; path=/; HttpOnly"),
]


def spaced(value: Json) -> bytes:
    """JSON as no program of ours writes it."""
    return json.dumps(value, indent=1, ensure_ascii=False, separators=(" ,", " : ")).encode() + b"\n"


def plainly(value: Json, status: int = 200, headers: Sequence[Header] = ()) -> Steps:
    """A JSON body by its length."""
    return answer(spaced(value), status, [KIND, *headers])


def streamed(told: Sequence[bytes], headers: Sequence[Header]) -> Steps:
    """Events as chunks that respect neither them nor letters."""
    return answer(in_pieces(b"".join(told)), headers=[EVENTS, *headers], framing="chunked")


def in_pieces(body: bytes) -> list[bytes]:
    return [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]


def breaking_off(told: Sequence[bytes], whole_events: int, headers: Sequence[Header]) -> Steps:
    """Breaks off within an event, a while after the last whole one, so that each client has seen what came before."""
    whole, torn = b"".join(told[:whole_events]), told[whole_events][:40]
    steps: list[Step] = [*streamed([], headers)[:1], b"%x\r\n%b\r\n" % (len(whole), whole), 0.4]
    return [*steps, b"%x\r\n%b\r\n" % (len(torn), torn), End.CLOSE]


def falling_silent(told: Sequence[bytes], whole_events: int, headers: Sequence[Header]) -> Steps:
    """Some events, then nothing more until the client leaves."""
    return [*streamed(told[:whole_events], headers)[:-1], End.HANG]


def squeezed(asked: Asked, body: bytes, kind: Header, headers: Sequence[Header]) -> Steps:
    """Encoded with gzip where the client takes that, in pieces that respect nothing."""
    if b"gzip" not in (asked.seen.header(b"accept-encoding") or b""):
        return answer(in_pieces(body), headers=[kind, *headers], framing="chunked")
    more = [(b"Content-Encoding", b"gzip"), (b"Vary", b"Accept-Encoding")]
    return answer(in_pieces(gzip.compress(body, mtime=0)), headers=[kind, *headers, *more], framing="chunked")


def last_first(asked: Asked, steps: Steps) -> Steps:
    """Answers that overtake each other: of those that are asked at once, the first waits longest."""
    return [(AT_ONCE - asked.number) * LATER_SECONDS, *steps]


def opening(asked: Asked) -> str:
    """An answer that belongs to the house that was asked for, and to no other."""
    house = re.search(rb"house (\d)", asked.seen.body)
    return f"House {house[1].decode()} opens at nine." if house else SAID


def cookies_of(asked: Asked) -> str:
    """The cookies that came back."""
    return (asked.seen.header(b"cookie") or b"no cookie").decode()


def event(value: Json) -> bytes:
    """A server-sent event that is named as its data's `type`."""
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return f"event: {value['type']}\ndata: {data}\n\n".encode()


def halves(text: str) -> list[str]:
    return [text[:6], text[6:]]


def is_of(asked: Asked, method: str, path_end: str) -> bool:
    return asked.seen.method == method and asked.seen.target.partition(b"?")[0].endswith(path_end.encode())
