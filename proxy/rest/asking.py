"""One request to `/memory-manager`: whose it is, which session it means, what it brings, and how it is refused."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
from starlette.responses import Response

from memory.errors import InvalidRequest, StoreUnavailable, TooLarge
from memory.identify import SESSION_NAME, fingerprint, is_nobodys, place
from memory.nouns import Place, Principal
from memory.whole import Memory
from proxy.errors import BodyTooLarge, Unauthorized, error_body
from proxy.exchange import Exchange
from proxy.parts import Parts
from proxy.rest.bodies import parse, parse_query
from proxy.tenants import key_of, tenant_of

T = TypeVar("T")

LARGE_BYTES = 256 * 1024  # from here on a body is parsed in a thread, so that it stalls nobody
PLAIN = (None, b"", b"identity")


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what."""

    parts: Parts
    memory: Memory
    exchange: Exchange
    principal: Principal
    place: Place
    named: Mapping[str, str]  # what the path names: {"item_id": ...}

    @property
    def tenant(self) -> bytes:
        return self.principal.tenant

    @property
    def named_place(self) -> Place | None:
        """The session, where the request names one."""
        return self.place if self.exchange.header(b"x-session-id") is not None else None

    @property
    def model(self) -> str:
        """The model whose window a session's memory is measured against."""
        return self.parts.config.primary_model

    async def body(self, type: type[T]) -> T:
        """
        Raises:
            BodyTooLarge: told before it is read, where its length is declared.
            NoJson, InvalidRequest: see `bodies.parse`.
        """
        if self.exchange.header(b"content-encoding") not in PLAIN:
            raise InvalidRequest("content-encoding must be identity: send the body as it is", "content-encoding")
        raw = await self.exchange.body(self.parts.config.max_body_mib * 2**20)
        return await asyncio.to_thread(parse, raw, type) if len(raw) > LARGE_BYTES else parse(raw, type)

    async def chunks(self, most_bytes: int) -> AsyncIterator[bytes]:
        """The body in the pieces it comes in.

        Raises:
            BodyTooLarge: over `most_bytes`.
        """
        total = self.exchange.declared_body_bytes or 0
        if total > most_bytes:
            raise BodyTooLarge(most_bytes)
        total = 0
        async for chunk in self.exchange.stream():
            total += len(chunk)
            if total > most_bytes:
                raise BodyTooLarge(most_bytes)
            yield chunk

    def query(self, type: type[T]) -> T:
        return parse_query(parse_qsl(self.exchange.query.decode("latin-1"), keep_blank_values=True), type)


def asking(parts: Parts, exchange: Exchange, named: Mapping[str, str]) -> Asking:
    """
    Raises:
        Unauthorized: it is not certain whose memory this is.
        InvalidRequest: a session name of another shape. The proxy ignores such a one; here it chooses data.
        StoreUnavailable: the database was not reached yet.
    """
    principal = principal_of(parts, exchange)
    if parts.whole is None:
        raise StoreUnavailable
    return Asking(parts, parts.whole, exchange, principal, session_of(principal.tenant, exchange), named)


def principal_of(parts: Parts, exchange: Exchange) -> Principal:
    if parts.pepper is None:
        raise StoreUnavailable
    at_home = parts.config.is_loopback and parts.config.rest.anonymous == "loopback"
    tenant = tenant_of(exchange.headers, parts.pepper, at_home)
    if tenant is None:
        raise Unauthorized(why_a_key(parts, exchange))
    key = key_of(exchange.headers)
    if key is not None and not is_nobodys(key):
        return Principal(tenant, f"key:{fingerprint(key)}", is_person=True)
    refuse_pages_from_elsewhere(exchange)
    return Principal(tenant, "local")


def why_a_key(parts: Parts, exchange: Exchange) -> str:
    send = "Send your API key as `Authorization: Bearer <key>`; it names your tenant."
    if key_of(exchange.headers) is None and exchange.header(b"authorization"):
        return f"{send} One key, as a bearer."
    if parts.config.is_loopback:
        return f"{send} `rest.anonymous` is off, so a request without a key of its own belongs to nobody."
    return f"{send} This server listens on {parts.config.host}, where others without a key could ask as well."


def refuse_pages_from_elsewhere(exchange: Exchange) -> None:
    """A page in somebody's browser can reach their loopback listener; it has no key, but a host and an origin."""
    host, origin = exchange.header(b"host"), exchange.header(b"origin")
    if host and not is_home(b"//" + host):
        raise Unauthorized("Without a key the server is asked as 127.0.0.1 or localhost only.")
    if origin and not is_home(origin):
        raise Unauthorized("Without a key no page from elsewhere may ask.")


def is_home(url: bytes) -> bool:
    try:
        name = urlsplit(url.decode("latin-1")).hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def session_of(tenant: bytes, exchange: Exchange) -> Place:
    given = exchange.header(b"x-session-id")
    if given is None:
        return place(tenant)
    name = given.decode("latin-1")
    if not SESSION_NAME.fullmatch(name):
        allowed = "1 to 128 characters of A-Z, a-z, 0-9 and . _ : -"
        raise InvalidRequest(f"X-Session-Id must be {allowed}", "X-Session-Id")
    return place(tenant, name)


# Answers


def reply(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def refused(error: Exception) -> Response:
    """OpenAI's error body, and its message once more as `detail`."""
    status, body = error_body(error)
    if isinstance(error, InvalidRequest) and not isinstance(error, TooLarge):
        status = 422
    told = msgspec.json.decode(body)
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    text = msgspec.json.encode({**told, "detail": told["error"]["message"]})
    return Response(text, status, headers, media_type="application/json")
