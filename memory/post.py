"""A POST of JSON to one address, over the network or to a unix socket of this machine."""

import ssl
from typing import TYPE_CHECKING, Protocol

import httpx

if TYPE_CHECKING:
    from aiohttp import ClientSession

JSON = {"content-type": "application/json"}
IDLE_SECONDS = 3_000  # our own servers keep a connection for an hour


class Post(Protocol):
    async def __call__(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            OSError: there was none.
        """
        ...

    async def close(self) -> None: ...


class NetworkPost:
    def __init__(self, url: str, api_key: str | None, timeout_seconds: float) -> None:
        self._url = url
        # No upper limit on connections: httpcore 1.0.9 loses a slot for ever on an unlucky cancellation, and a full
        # pool would then stay full.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else ssl.create_default_context()
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False),
            headers=JSON | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=timeout_seconds,
            trust_env=False,
        )

    async def __call__(self, body: bytes) -> tuple[int, bytes]:
        try:
            answer = await self._client.post(self._url, content=body)
        except httpx.HTTPError as error:
            raise OSError(type(error).__name__) from error
        return answer.status_code, answer.content

    async def close(self) -> None:
        await self._client.aclose()


class LocalPost:
    """By aiohttp: httpx takes four times as long, which is a third of what the vector of a question takes."""

    def __init__(self, url: str, socket_path: str) -> None:
        self._url = url
        self._socket_path = socket_path
        self._session: ClientSession | None = None

    async def __call__(self, body: bytes) -> tuple[int, bytes]:
        from aiohttp import ClientError  # only processes that ask others have it loaded

        session = self._session or self._opened()
        try:
            async with session.post(self._url, data=body) as answer:
                return answer.status, await answer.read()
        except ClientError as error:
            raise OSError(type(error).__name__) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> "ClientSession":
        """A session belongs to the event loop in which it is made."""
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, UnixConnector

        self._session = ClientSession(
            connector=UnixConnector(self._socket_path, limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=DummyCookieJar(),
            headers=JSON,
            timeout=ClientTimeout(total=None),  # whoever asks bounds the whole
        )
        return self._session
