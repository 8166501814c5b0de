"""Windows of models nobody told us: asked of the upstream's /v1/models, with the client's key, beside its request."""

from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import structlog

from memory.models import ModelTable
from memory.told import windows_in_models_reply
from proxy.exchange import Headers
from proxy.upstream import Upstream

log = structlog.get_logger()

ASKING_SECONDS = 10.0
IDENTITY = frozenset(
    b"authorization api-key x-api-key openai-organization openai-project anthropic-version anthropic-beta".split()
)


def client_without_cookies() -> httpx.AsyncClient:
    """A client that keeps no cookies: what the provider sets for one key must not go with another's."""
    return httpx.AsyncClient(cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())))


class Windows:
    def __init__(self, models: ModelTable, client: httpx.AsyncClient) -> None:
        self._models = models
        self._client = client

    def wants(self, model: str, upstream: Upstream) -> bool:
        """Is this model's window unknown there, does it list models, and has nobody asked within the hour?"""
        return upstream.is_remote and self._models.wants_learning(model, upstream.base_url)

    async def ask(self, upstream: Upstream, headers: Headers) -> None:
        """Learn every window that the upstream lists, as whom `headers` name. What fails leaves the model a wire
        for an hour."""
        url = upstream.url_for(b"/v1/models", b"")
        identity = [(name, value) for name, value in headers if name in IDENTITY]
        try:
            reply = await self._client.get(url, headers=identity, timeout=ASKING_SECONDS)
        except httpx.HTTPError as error:
            log.info("models not listed", reason=f"{type(error).__name__}: {error}")
            return
        for name, window in windows_in_models_reply(reply.content).items():
            self._models.learn(name, upstream.base_url, window)
