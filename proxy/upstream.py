"""The way to the provider: send a request, get its answer as it comes. Foreign errors are mapped here.

aiohttp makes, pools and parses the connections (TLS, name resolution, both address families, chunked bodies). What
goes over them we write ourselves, so nothing can be added to a request: no User-Agent, no Accept, no cookies, no
retries, no redirects, no proxy from the environment, and header values that are no UTF-8 pass.
"""

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote_to_bytes
from weakref import WeakSet

import aiohttp
from aiohttp import http, http_exceptions
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import AddrInfoType, Connection
from yarl import URL

from proxy.errors import BadFraming, ClientGone, Silent, Unreachable, UpstreamCut
from proxy.exchange import Headers

# RFC 9110, 7.6.1, and the older RFC 2616, 13.5.1: about one connection, not about the message.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Ours to set (host, content-length), answered by our server (expect), or meant for us.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-session-id"}
OURS = b"x-infold-"

IDLE_SECONDS = 15.0  # how long an unused connection is kept
IDLE_CLOSE_SECONDS = 1.0  # a connection that dies this soon after a request was closed for idleness
READ_BUFFER_BYTES = 64 * 1024  # reading from the upstream pauses at twice this when the client is slow
JOINED_BYTES = 64 * 1024  # up to here copying a body behind its head is cheaper than a second system call
HEADER_BYTES = 64 * 1024  # of one header line in an answer
HEADER_LINES = 1_000
PROBE_SECONDS = 60  # TCP keep-alive: between a thinking model and us, firewalls forget silent connections
METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))

FAILURES = (aiohttp.ClientError, OSError, http_exceptions.HttpProcessingError)
FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Reply:
    """The upstream's answer; the body comes later, through `chunks`."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]  # hop-by-hop removed; order, case and duplicates kept
    _content: aiohttp.StreamReader = field(repr=False)
    _closed: "asyncio.Future[None] | None" = field(default=None, repr=False)  # for a body that ends with the connection

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in the pieces it comes in; its content encoding is not touched.

        Raises:
            UpstreamCut: the body ended early; all bytes that came were given out before.
        """
        try:
            while chunk := await self._content.readany():
                yield chunk
        except (*FAILURES, RuntimeError) as error:  # RuntimeError: the connection is gone since before we read
            # aiohttp raises before it gives out what has come in the meantime.
            if rest := self._content._read_nowait(-1):
                yield rest
            raise UpstreamCut(f"The upstream's answer broke off: {_told(error)}.") from error
        if self._closed is not None and self._closed.done() and (lost := self._closed.exception()) is not None:
            raise UpstreamCut("The upstream's answer broke off: the connection was reset.") from lost


class Upstream:
    """One provider, and the connections to it. Belongs to one event loop, from the first request on."""

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_seconds: float = 10,
        silence_timeout_seconds: float = 900,
        socket_path: str | None = None,
        sets_cookies: bool = True,
    ) -> None:
        """
        Args:
            base_url: scheme, host, and perhaps a port, a path and a query; nothing else.
            socket_path: of a unix socket that is asked instead of the host.
            sets_cookies: False: cookies in its answers stay here.
            connect_timeout_seconds: for name resolution, connection and TLS together.
            silence_timeout_seconds: the longest time without a byte from the upstream, before or within its answer.

        Raises:
            ValueError: the URL is not http or https, names no host, or holds a user or a fragment.
        """
        url = _checked(base_url)
        self.base_url = base_url
        self._url = url
        self._origin = str(url.origin())
        self._path = url.raw_path.rstrip("/").encode("ascii")
        self._query = url.raw_query_string.encode("ascii")
        self._socket_path = socket_path
        self._kept_back = HOP_BY_HOP if sets_cookies else HOP_BY_HOP | {b"set-cookie"}
        self._host = (url.host_port_subcomponent or "").encode("ascii")
        self._connect_timeout_seconds = connect_timeout_seconds
        self._silence_timeout_seconds = silence_timeout_seconds
        self._connector: aiohttp.BaseConnector | None = None
        self._destination: ClientRequest | None = None
        self._used: WeakSet[ResponseHandler] = WeakSet()  # connections that have answered before

    def __repr__(self) -> str:
        return f"<Upstream {self.base_url}>"

    @property
    def is_remote(self) -> bool:
        """False: a process of ours."""
        return self._socket_path is None

    def url_for(self, raw_path: bytes, query: bytes) -> str:
        """Where a client's path goes. Percent-encoding stays byte for byte.

        If the upstream's URL has a path, it replaces the client's leading `/v1`; if not, the client's path stays.
        A query of its own comes first, and the client's parameters of the same names do not go.

        >>> Upstream("https://api.example/openai/v1").url_for(b"/v1/models/a%2Fb", b"limit=2")
        'https://api.example/openai/v1/models/a%2Fb?limit=2'
        >>> Upstream("http://localhost:8000").url_for(b"/v1/models", b"")
        'http://localhost:8000/v1/models'
        >>> Upstream("https://a.example/d/x?api-version=9").url_for(b"/v1/models", b"api-version=1&limit=2")
        'https://a.example/d/x/models?api-version=9&limit=2'
        """
        return self._origin + self._target(raw_path, query).decode("latin-1")

    def _target(self, raw_path: bytes, query: bytes) -> bytes:
        path = raw_path
        if self._path:
            rest = path[3:] if path == b"/v1" or path.startswith(b"/v1/") else path
            path = self._path + rest
        if self._query:
            query = b"&".join((self._query, *without_names(query, names_in(self._query))))
        return b"%b?%b" % (path, query) if query else path

    def send(
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        upgrade: bytes | None = None,
    ) -> "Sending":
        """Send a request: `async with upstream.send(...) as reply`. Leaving early closes the connection.

        Args:
            headers: the client's own; what must not be forwarded is left out here, see `forwardable`.
            body: bytes, or pieces as they come: with the client's Content-Length where it sent one, else chunked.
            upgrade: a protocol to go on with, if the upstream agrees (status 101); see `Sending.hand_over`.

        Raises (on entering):
            Unreachable: no answer; says why and what to check.
            Silent: no byte of an answer within `silence_timeout_seconds`.
            BadFraming: a method, path or header holds a control character.
        """
        length = _length(method, headers, body)
        kept = forwardable(headers)
        if upgrade is not None:
            kept += [(b"upgrade", upgrade), (b"connection", b"Upgrade")]
        head = render_head(method, self._target(raw_path, query), self._host, kept, length)
        return Sending(self, method, head, body, length is None and body is not None, upgrade is not None)

    async def close(self) -> None:
        """Close all connections; for the end, when no request is under way any more."""
        if self._connector is not None:
            await self._connector.close()

    async def _connect(self) -> Connection:
        if self._connector is None or self._destination is None:
            loop = asyncio.get_running_loop()
            self._connector = self._new_connector()
            self._destination = ClientRequest("GET", self._url, loop=loop)
        timeout = aiohttp.ClientTimeout(connect=self._connect_timeout_seconds)
        try:
            connection = await self._connector.connect(self._destination, traces=[], timeout=timeout)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            told = _told(error)
            if isinstance(error, TimeoutError):
                told = f"no connection within {self._connect_timeout_seconds:g} seconds"
            raise Unreachable(self._advice("cannot be reached", told)) from error
        protocol = connection.protocol
        if protocol not in self._used and protocol is not None and protocol.closed is not None:
            protocol.closed.add_done_callback(_heed)
        return connection

    def _new_connector(self) -> aiohttp.BaseConnector:
        if self._socket_path is not None:
            # None is kept: opening one costs nothing, and a request on one to a process that has just died is lost.
            return aiohttp.UnixConnector(self._socket_path, limit=0, force_close=True)
        return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, socket_factory=_socket)

    def _advice(self, what: str, why: str) -> str:
        return f"The upstream {self._origin} {what}: {why}. Check the upstream's URL and that it is running."


class Sending:
    """A request under way. Entering sends it and gives the Reply; leaving hands the connection back or closes it."""

    __slots__ = (
        "_body",
        "_chunked",
        "_closed",
        "_connection",
        "_content",
        "_head",
        "_method",
        "_upgrades",
        "_upload",
        "_upstream",
    )

    def __init__(
        self,
        upstream: Upstream,
        method: str,
        head: bytes,
        body: bytes | AsyncIterator[bytes] | None,
        chunked: bool,
        upgrades: bool,
    ) -> None:
        self._upstream = upstream
        self._method = method
        self._head = head
        self._body = body
        self._chunked = chunked
        self._upgrades = upgrades
        self._connection: Connection | None = None
        self._closed: asyncio.Future[None] | None = None
        self._content: aiohttp.StreamReader | None = None
        self._upload: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reply:
        self._connection = await self._upstream._connect()
        protocol = self._connection.protocol
        assert protocol is not None
        try:
            protocol.set_response_params(
                skip_payload=self._method == "HEAD",
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=self._upstream._silence_timeout_seconds,
                read_bufsize=READ_BUFFER_BYTES,
                max_line_size=HEADER_BYTES,
                max_field_size=HEADER_BYTES,
                max_headers=HEADER_LINES,
            )
            self._write(protocol)
            return await self._reply(protocol)
        except BaseException:
            self._abort()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, content = self._connection, self._content
        if connection is None or content is None:
            return
        transport = connection.transport
        sent = self._upload is None and transport is not None and not transport.get_write_buffer_size()
        if error is None and sent and content.is_eof():
            if self._closed is not None:
                self._closed.remove_done_callback(self._lost)
            if connection.protocol is not None:
                self._upstream._used.add(connection.protocol)
            connection.release()
            self._connection = None
        else:
            self._abort()

    def hand_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport | None, bytes]:
        """After a 101: let `protocol` have the connection, and give what has come behind the answer.

        Leaving closes it all the same. The transport is None if the connection has ended already.
        """
        assert self._connection is not None
        handler = self._connection.protocol
        assert handler is not None
        handler.read_timeout = None
        handler.start_timeout()  # which ends the one that runs
        early, handler._tail = handler._tail, b""
        transport = handler.transport
        if transport is not None:
            transport.set_protocol(protocol)
            transport.resume_reading()  # aiohttp pauses when much has come
        return transport, early

    def _write(self, protocol: ResponseHandler) -> None:
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise Unreachable(self._upstream._advice("closed the connection", "before anything was sent"))
        if self._body is None or isinstance(self._body, bytes):
            body = self._body or b""
            if len(body) <= JOINED_BYTES:
                transport.write(self._head + body)
            else:
                transport.write(self._head)
                transport.write(body)
            protocol.start_timeout()
        else:
            transport.write(self._head)
            self._upload = asyncio.create_task(self._send_pieces(protocol, self._body))

    async def _send_pieces(self, protocol: ResponseHandler, pieces: AsyncIterator[bytes]) -> None:
        """Send the request body as it comes, no faster than the upstream reads."""
        writer = http.StreamWriter(protocol, asyncio.get_running_loop())
        if self._chunked:
            writer.enable_chunking()
        try:
            async for piece in pieces:
                async with asyncio.timeout(self._upstream._silence_timeout_seconds):
                    await writer.write(piece)
            await writer.write_eof()
            protocol.start_timeout()
        except TimeoutError:
            protocol.set_exception(aiohttp.SocketTimeoutError())
        except (aiohttp.ClientError, OSError):
            return  # the upstream stopped reading; whether it answered before that is seen where the answer is read
        except (ClientGone, BadFraming) as error:
            protocol.set_exception(error)  # whoever waits for the answer learns it there

    async def _reply(self, protocol: ResponseHandler) -> Reply:
        advice = self._upstream._advice
        began = asyncio.get_running_loop().time()
        try:
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:  # Early Hints and the like
                message, content = await protocol.read()
        except aiohttp.SocketTimeoutError as error:
            waited = f"{self._upstream._silence_timeout_seconds:g} seconds"
            raise Silent(advice("is silent", f"no byte of an answer within {waited}"), sent=True) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            # A connection used before was most likely closed for idleness just as we wrote: the request wasn't read.
            waited_seconds = asyncio.get_running_loop().time() - began
            sent = protocol not in self._upstream._used or waited_seconds > IDLE_CLOSE_SECONDS
            raise Unreachable(advice("gave no answer", _told(error)), sent=sent) from error
        except FAILURES as error:
            raise Unreachable(advice("gave no answer", _told(error)), sent=True) from error
        headers = tuple(forwardable(message.raw_headers, drop=self._upstream._kept_back))
        expected = 200 <= message.code < 600 or (message.code == 101 and self._upgrades)
        if not expected or FORBIDDEN.search(b"".join(value for _, value in headers)):
            raise Unreachable(advice("gave no answer", "what it sent is not HTTP"), sent=True)
        self._content = content
        self._closed = protocol.closed
        if self._closed is not None:
            self._closed.add_done_callback(self._lost)
        until_close = not message.chunked and not content.is_eof() and "content-length" not in message.headers
        return Reply(message.code, headers, content, self._closed if until_close else None)

    def _lost(self, closed: "asyncio.Future[None]") -> None:
        """Wake whoever reads the body: aiohttp 3.14 does not where the body's framing is broken, or on `close`."""
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError())

    def _abort(self) -> None:
        """Close at once, whatever is still unsent: a polite close would wait for an upstream that doesn't read."""
        if self._upload is not None:
            self._upload.cancel()
        if self._connection is not None:
            if self._connection.protocol is not None:
                self._connection.protocol.abort()
            self._connection.close()
            self._connection = None


def forwardable(headers: Headers, *, drop: frozenset[bytes] = NOT_FORWARDED) -> list[tuple[bytes, bytes]]:
    """The headers that go on to the other side, exactly as they came.

    Left out are those in `drop`, those named in Connection, and `x-infold-*`, which is our own.

    >>> forwardable([(b"Host", b"here"), (b"X-A", b"1"), (b"Connection", b"x-b"), (b"x-b", b"2"), (b"x-a", b"3")])
    [(b'X-A', b'1'), (b'x-a', b'3')]
    """
    kept, named = [], frozenset[bytes]()
    for pair in headers:
        name = pair[0].lower()
        if name == b"connection":
            named |= {token.strip().lower() for token in pair[1].split(b",")}
        elif name not in drop and not name.startswith(OURS):
            kept.append(pair)
    return [pair for pair in kept if pair[0].lower() not in named] if named else kept


def render_head(method: str, target: bytes, host: bytes, headers: Headers, length: int | None) -> bytes:
    """Request line and headers as they go over the wire; `length` None means chunked, negative means no body.

    Raises:
        BadFraming: a control character that could end a line early (request smuggling).
    """
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target), b"host: " + host]
    lines += [b"%b: %b" % pair for pair in headers]
    if length is None:
        lines.append(b"transfer-encoding: chunked")
    elif length >= 0:
        lines.append(b"content-length: %d" % length)
    if FORBIDDEN.search(b"".join(lines)):
        raise BadFraming("A control character in a method, path or header cannot be forwarded.")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _length(method: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None) -> int | None:
    """The Content-Length to send; None: chunked; -1: there is no body to speak of."""
    declared = next((int(value) for name, value in headers if name.lower() == b"content-length"), None)
    if body is not None and not isinstance(body, bytes):
        return declared
    if body or method in METHODS_WITH_BODY or declared is not None:
        return len(body or b"")
    return -1


def _heed(closed: "asyncio.Future[None]") -> None:
    """Take note of how a connection ended, or asyncio complains that nobody did."""
    closed.exception()


def _socket(address: AddrInfoType) -> socket.socket:
    """A TCP socket that notices within minutes when the other machine is gone."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    notice_death(sock)
    return sock


def notice_death(sock: socket.socket) -> None:
    """Let the kernel ask every minute whether the other machine is still there."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):  # a unix socket's other end is on this machine
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def _checked(base_url: str) -> URL:
    url = URL(base_url)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"The upstream must be an http or https URL, got {base_url!r}.")
    if url.user or url.password or url.raw_fragment:
        raise ValueError("The upstream URL takes a host, a path and a query only: no user, no fragment.")
    return url


def names_in(query: bytes) -> frozenset[bytes]:
    """The names of a query's parameters, in lower case."""
    return frozenset(unquote_to_bytes(part.partition(b"=")[0]).lower() for part in query.split(b"&"))


def without_names(query: bytes, names: frozenset[bytes]) -> list[bytes]:
    """A query's parameters, byte for byte, but for those of certain names."""
    return [part for part in query.split(b"&") if part and not names_in(part) & names]


def _told(error: BaseException) -> str:
    """A short cause for people."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name does not resolve"
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not accepted ({error.certificate_error})"
        case aiohttp.ClientConnectorSSLError():
            return f"TLS failed ({error.os_error})"
        case aiohttp.ClientConnectorError():
            return f"connecting failed ({os.strerror(error.errno) if error.errno else error.os_error})"
        case aiohttp.ClientPayloadError():
            return "the connection closed before the end of the body"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection before it answered"
        case OSError(errno=int(number)):
            return os.strerror(number)
        case TimeoutError():
            return "it was silent for too long"
        case http_exceptions.HttpProcessingError():
            return "what it sent is not HTTP"
        case _:
            return str(error) or type(error).__name__
